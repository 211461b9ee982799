"""Actor and critic with one body, as in torch's examples: after each episode a step on both losses."""

from itertools import islice

import torch
from torch import nn
from torch.distributions import Categorical

from fsm_train import Supervised, run, start
from tests.situations.reinforce import Episodes, Line

TRICK = ""


class ActorCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.actor, self.critic = nn.Linear(9, 16), nn.Linear(16, 2), nn.Linear(16, 1)

    def forward(self, states):
        hidden = self.body(states).relu()
        return self.actor(hidden), self.critic(hidden).squeeze(-1)


def of_both(output, done):
    logits, values = output
    actions, returns = done
    advantages = returns - values.detach()
    actor = -(Categorical(logits=logits).log_prob(actions) * advantages).sum()
    critic = nn.functional.smooth_l1_loss(values, returns, reduction="sum")
    return {"loss": actor + critic, "actor": actor, "critic": critic}


def setup():
    torch.manual_seed(0)
    model = ActorCritic()
    return model, torch.optim.Adam(model.parameters(), lr=3e-2), Episodes(Line(), lambda state: model(state)[0])


def plain():
    model, optimizer, episodes = setup()
    for states, done in islice(episodes, 20):
        losses = of_both(model(states), done)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    return model


def machine():
    model, optimizer, episodes = setup()
    run(start(Supervised(model, optimizer, of_both, episodes), max_steps=20))
    return model
