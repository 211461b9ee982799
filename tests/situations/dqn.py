"""DQN: a memory that the policy fills, and a target network that follows softly."""

import copy
import random
from itertools import islice

import torch
from torch import nn

from fsm_train import Supervised, run, start, weights
from fsm_train.callbacks import clip_grad_value, ema
from tests.situations.reinforce import Line

TRICK = ""


class Memory:
    """Batches of what the policy has met until then, one for each step in the world; saved with the training."""

    def __init__(self, world, policy):
        self.world, self.policy, self.met = world, policy, []
        world.reset()

    def __iter__(self):
        return iter(self.batch, None)

    def batch(self):
        self.step()
        while len(self.met) < 16:
            self.step()
        return [torch.stack(part) for part in zip(*random.sample(self.met, 16), strict=True)]

    def step(self):
        state = self.world.seen()
        action = self.act(state)
        after, reward, done = self.world.step(action)
        self.met.append((state, torch.tensor(action), after, torch.tensor(reward), torch.tensor(float(not done))))
        if done:
            self.world.reset()

    def state_dict(self):
        return {"met": self.met}

    def load_state_dict(self, saved):
        self.met = saved["met"]

    def act(self, state):
        if random.random() < 0.3:
            return random.randrange(2)
        with torch.no_grad():
            return self.policy(state).argmax().item()


def setup():
    torch.manual_seed(0)
    random.seed(0)
    policy = nn.Sequential(nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, 2))
    return policy, torch.optim.AdamW(policy.parameters(), lr=1e-2), Memory(Line(), policy)


def plain():
    policy, optimizer, memory = setup()
    target = copy.deepcopy(policy)
    for states, actions, after, rewards, goes_on in islice(memory, 40):
        with torch.no_grad():
            worth = rewards + 0.9 * goes_on * target(after).amax(dim=1)
        values = policy(states).gather(1, actions[:, None])[:, 0]
        loss = nn.functional.smooth_l1_loss(values, worth)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_value_(policy.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), policy.parameters(), strict=True):
                slow.lerp_(fast, 0.05)
    return policy


def machine():
    policy, optimizer, memory = setup()

    def difference(values, batch):
        _, actions, after, rewards, goes_on = batch
        with weights(work, "target"):
            worth = rewards + 0.9 * goes_on * policy(after).amax(dim=1)
        return nn.functional.smooth_l1_loss(values.gather(1, actions[:, None])[:, 0], worth)

    work = Supervised(policy, optimizer, difference, memory, split=lambda batch: (batch[0], batch))
    follows = ema(0.95, initial=True, validate=False, name="target")
    run(start(work, max_steps=40), [clip_grad_value(1.0), follows])
    return policy
