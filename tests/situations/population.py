"""Population-based training: the worst member takes over weights and rate of the best, and changes the rate."""

import torch
from torch import nn
from torch.utils.data import DataLoader

from fsm_train import Supervised, extend, run, start
from tests.models import diabetes

TRICK = ""


def setup():
    data, members = diabetes(), []
    for seed, rate in enumerate((0.001, 0.003, 0.01)):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 1))
        generator = torch.Generator().manual_seed(seed)
        train = DataLoader(torch.utils.data.Subset(data, range(320)), 32, shuffle=True, generator=generator)
        members.append((model, torch.optim.Adam(model.parameters(), lr=rate), train))
    return members, [data[320:]]


def exploit(members, losses):
    best, worst = losses.index(min(losses)), losses.index(max(losses))
    for own, others in zip(members[worst][:2], members[best][:2], strict=True):
        own.load_state_dict(others.state_dict())
    members[worst][1].param_groups[0]["lr"] *= 1.2


def plain():
    members, valid = setup()
    for _ in range(3):
        losses = []
        for model, optimizer, train in members:
            model.train()
            for inputs, target in train:
                loss = nn.functional.mse_loss(model(inputs), target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            model.eval()
            with torch.no_grad():
                losses.append(sum(nn.functional.mse_loss(model(x), y).item() for x, y in valid))
        exploit(members, losses)
    return [model for model, _, _ in members], losses


def machine():
    members, valid = setup()
    workloads = [Supervised(*both, nn.functional.mse_loss, train, valid) for *both, train in members]
    states = [start(work, epochs=1) for work in workloads]
    for _ in range(3):
        ended = [run(state) for state in states]
        losses = [state.metrics["valid_loss"] for state in ended]
        exploit(members, losses)
        states = [extend(state, epochs=1) for state in ended]
    return [model for model, _, _ in members], losses
