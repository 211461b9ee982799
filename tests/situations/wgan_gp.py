"""WGAN-GP: five steps of the critic, with a penalty on the norm of its gradient, to one of the generator."""

import torch
from torch import nn

from fsm_train import Alternating, Player, run, start
from tests.models import digits, shuffled

TRICK = ""


def setup():
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 64), nn.Sigmoid())
    critic = nn.Sequential(nn.Linear(64, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
    optimizers = [torch.optim.Adam(part.parameters(), lr=1e-3, betas=(0.0, 0.9)) for part in (generator, critic)]
    return generator, critic, *optimizers, shuffled(digits())


def scores(critic, real, fake):
    """Of both, and the norm of the gradient at points between them."""
    between = torch.lerp(real, fake, torch.rand(len(real), 1)).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return critic(real), critic(fake), gradient.norm(dim=1)


def distance(real, fake, norms):
    return fake.mean() - real.mean() + 10 * (norms - 1).square().mean()


def plain():
    generator, critic, of_generator, of_critic, train = setup()
    batch = 0
    for _ in range(2):
        for images, _ in train:
            with torch.no_grad():
                fake = generator(torch.randn(len(images), 8))
            loss = distance(*scores(critic, images, fake))
            of_critic.zero_grad()
            loss.backward()
            of_critic.step()
            batch += 1
            if batch % 5 == 0:
                loss = -critic(generator(torch.randn(32, 8))).mean()
                of_generator.zero_grad()
                loss.backward()
                of_generator.step()
    return generator, critic


def machine():
    generator, critic, of_generator, of_critic, train = setup()

    def critical(images, labels):
        with torch.no_grad():
            fake = generator(torch.randn(len(images), 8))
        return distance(*scores(critic, images, fake))

    players = {
        "D": Player(critic, of_critic, critical),
        "G": Player(generator, of_generator, lambda *_: -critic(generator(torch.randn(32, 8))).mean(), every=5),
    }
    run(start(Alternating(players, train), epochs=2))
    return generator, critic
