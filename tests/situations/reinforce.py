"""REINFORCE: each batch is what the policy of the moment does in a small world."""

from itertools import islice

import torch
from torch import nn
from torch.distributions import Categorical

from fsm_train import Supervised, run, start

TRICK = ""


class Line:
    """A world of nine places: it begins in the middle, and the right end pays."""

    def reset(self):
        self.place, self.time = 4, 0
        return self.seen()

    def state_dict(self):
        return {"place": self.place, "time": self.time}

    def load_state_dict(self, saved):
        self.place, self.time = saved["place"], saved["time"]

    def seen(self):
        return nn.functional.one_hot(torch.tensor(self.place), 9).float()

    def step(self, action):
        self.place, self.time = self.place + (1 if action else -1), self.time + 1
        return self.seen(), float(self.place == 8), self.place in (0, 8) or self.time == 30


class Episodes:
    """Without end: what was seen, what was done, and the discounted sums of what it paid from there on.

    Each begins anew, so that there is no place to be saved: that it has a state says so, and none is played again.
    """

    def __init__(self, world, policy):
        self.world, self.policy = world, policy

    def __iter__(self):
        return iter(self.episode, None)

    def episode(self):
        states, actions, rewards = zip(*self.steps(), strict=True)
        returns = [sum(0.95**n * later for n, later in enumerate(rewards[at:])) for at in range(len(rewards))]
        return torch.stack(states), (torch.stack(actions), torch.tensor(returns))

    def steps(self):
        state, done = self.world.reset(), False
        while not done:
            with torch.no_grad():
                action = Categorical(logits=self.policy(state)).sample()
            after, reward, done = self.world.step(action)
            yield state, action, reward
            state = after

    def state_dict(self):
        return {}

    def load_state_dict(self, saved):
        """It goes on with the next episode."""


def policy_gradient(logits, done):
    actions, returns = done
    return -(Categorical(logits=logits).log_prob(actions) * (returns - 0.5)).mean()


def setup():
    torch.manual_seed(0)
    policy = nn.Sequential(nn.Linear(9, 16), nn.Tanh(), nn.Linear(16, 2))
    return policy, torch.optim.Adam(policy.parameters(), lr=1e-2), Episodes(Line(), policy)


def plain():
    policy, optimizer, episodes = setup()
    for states, done in islice(episodes, 20):
        loss = policy_gradient(policy(states), done)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return policy


def machine():
    policy, optimizer, episodes = setup()
    run(start(Supervised(policy, optimizer, policy_gradient, episodes), max_steps=20))
    return policy
