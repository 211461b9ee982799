"""A GAN of convolutions: the critic learns from a real and a generated batch, then the generator from the critic."""

import torch
from torch import nn

from fsm_train import Alternating, Player, run, start
from tests.models import digits, shuffled

TRICK = ""


def setup():
    torch.manual_seed(0)
    generator = nn.Sequential(
        *(nn.Unflatten(1, (8, 1, 1)), nn.ConvTranspose2d(8, 16, 4), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1), nn.Sigmoid(), nn.Flatten()),
    )
    critic = nn.Sequential(
        *(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.BatchNorm2d(16), nn.LeakyReLU(0.2)),
        *(nn.Conv2d(16, 1, 4), nn.Flatten(0)),
    )
    optimizers = [torch.optim.Adam(part.parameters(), lr=2e-4, betas=(0.5, 0.999)) for part in (generator, critic)]
    return generator, critic, *optimizers, shuffled(digits())


def looks(scores, real):
    return nn.functional.binary_cross_entropy_with_logits(scores, torch.full_like(scores, real))


def plain():
    generator, critic, of_generator, of_critic, train = setup()
    for _ in range(2):
        for images, _ in train:
            fake = generator(torch.randn(len(images), 8)).detach()
            loss = looks(critic(images), 1.0) + looks(critic(fake), 0.0)
            of_critic.zero_grad()
            loss.backward()
            of_critic.step()
            fake = generator(torch.randn(len(images), 8))
            loss = looks(critic(fake), 1.0)
            of_generator.zero_grad()
            loss.backward()
            of_generator.step()
    return generator, critic


def machine():
    generator, critic, of_generator, of_critic, train = setup()

    def critical(images, labels):
        fake = generator(torch.randn(len(images), 8)).detach()
        return looks(critic(images), 1.0) + looks(critic(fake), 0.0)

    def deceptive(images, labels):
        return looks(critic(generator(torch.randn(len(images), 8))), 1.0)

    players = {"D": Player(critic, of_critic, critical), "G": Player(generator, of_generator, deceptive)}
    run(start(Alternating(players, train), epochs=2))
    return generator, critic
