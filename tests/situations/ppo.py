"""PPO: what the policy does is gone through in several epochs of small batches, with a clipped objective."""

import torch
from torch import nn
from torch.distributions import Categorical

from fsm_train import Supervised, run, start
from fsm_train.callbacks import clip_grad_norm, schedule
from fsm_train.schedules import linear
from tests.situations.actor_critic import ActorCritic
from tests.situations.reinforce import Line

TRICK = ""


class Rollouts:
    """A pass plays 64 steps with the policy of the moment, and gives them three times in batches of 16.

    What is left of a pass is saved with the training: played again, by a policy that has learned, it would be another.
    """

    def __init__(self, world, model):
        self.world, self.model, self.left, self.resumes = world, model, [], False
        world.reset()

    def __iter__(self):
        if not self.resumes:
            self.left = [*self.batches(*self.play())]
        self.resumes = False
        return iter(lambda: self.left.pop(0) if self.left else None, None)

    def state_dict(self):
        return {"left": self.left}

    def load_state_dict(self, saved):
        self.left, self.resumes = saved["left"], True

    @torch.no_grad()
    def play(self):
        steps = []
        for _ in range(64):
            state = self.world.seen()
            logits, value = self.model(state)
            action = Categorical(logits=logits).sample()
            _, reward, done = self.world.step(action)
            if done:
                self.world.reset()
            log_prob = Categorical(logits=logits).log_prob(action)
            steps.append((state, action, log_prob, value, torch.tensor(reward), torch.tensor(float(not done))))
        states, actions, log_probs, values, rewards, goes_on = (torch.stack(part) for part in zip(*steps, strict=True))
        after = torch.cat([values[1:], self.model(self.world.seen())[1][None]])
        surprises = rewards + 0.95 * goes_on * after - values
        advantages = torch.zeros(65)
        for at in reversed(range(64)):
            advantages[at] = surprises[at] + 0.95 * 0.9 * goes_on[at] * advantages[at + 1]
        return states, actions, log_probs, advantages[:64], advantages[:64] + values

    def batches(self, *played):
        for _ in range(3):
            for chosen in torch.randperm(64).split(16):
                states, *done = (part[chosen] for part in played)
                yield states, done


def clipped(output, done):
    logits, values = output
    actions, log_probs, advantages, returns = done
    policy = Categorical(logits=logits)
    ratio = (policy.log_prob(actions) - log_probs).exp()
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    gain = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()
    return 0.5 * nn.functional.mse_loss(values, returns) - gain - 0.01 * policy.entropy().mean()


def setup():
    torch.manual_seed(0)
    model = ActorCritic()
    return model, torch.optim.Adam(model.parameters(), lr=3e-3), Rollouts(Line(), model)


def plain():
    model, optimizer, rollouts = setup()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 48)
    for _ in range(4):
        for states, done in rollouts:
            loss = clipped(model(states), done)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            scheduler.step()
    return model


def machine():
    model, optimizer, rollouts = setup()
    work = Supervised(model, optimizer, clipped, rollouts)
    run(start(work, epochs=4), [clip_grad_norm(0.5), schedule(lr=linear(1.0, 0.0, 48))])
    return model
