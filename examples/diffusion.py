# python examples/diffusion.py: a DDPM learns to draw digits, and shows how the average of its weights draws them.
import attrs
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader

from fsm_train import Command, Evaluation, Phase, Supervised, Transition, carries_out, on, run, start, weights
from fsm_train.callbacks import ema

STEPS, TIMES, drawn = 2000, 100, []
BETAS = torch.linspace(1e-3, 0.2, TIMES)  # those of Ho et al. (2020), for a tenth of their times
SIGNAL = (1 - BETAS).cumprod(dim=0)  # what is left of an image
CODES = torch.eye(TIMES)  # what the model is told of a time
IMAGES = torch.tensor(load_digits().data, dtype=torch.float32) / 8 - 1


def denoise(model, images):
    """The noise that the model sees in images that are noisy by random times, and the noise that is there."""
    time, noise = torch.randint(TIMES, (len(images),)), torch.randn_like(images)
    noisy = SIGNAL[time, None].sqrt() * images + (1 - SIGNAL[time, None]).sqrt() * noise
    return model(torch.cat([noisy, CODES[time]], dim=1)), noise


@attrs.frozen
class Draw(Command):
    seed: int


@carries_out(Draw)
def draw(work, command):
    with work.undisturbed(), weights(work, "ema"):
        torch.manual_seed(command.seed)
        images = torch.randn(9, 64)
        for time in reversed(range(TIMES)):
            noise = work.model(torch.cat([images, CODES[[time] * 9]], dim=1))
            images = (images - BETAS[time] / (1 - SIGNAL[time]).sqrt() * noise) / (1 - BETAS[time]).sqrt()
            images += (time > 0) * BETAS[time].sqrt() * torch.randn(9, 64)
    drawn.append(images)
    rows = images.view(9, 8, 8).transpose(0, 1).flatten(1).clamp(-1, 1) * 2 + 2
    print(f"step {work.state.step}", *("".join(" .:*#"[round(ink)] for ink in row) for row in rows.tolist()), sep="\n")


@on(Phase.BATCH_END, commands={Draw}, every=STEPS // 2)
def draws(state):
    return Transition(commands=(Draw(seed=1),))


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64 + TIMES, 384), nn.SiLU(), nn.Linear(384, 384), nn.SiLU(), nn.Linear(384, 64))
work = Supervised(
    *(model, torch.optim.Adam(model.parameters(), lr=2e-3), lambda output, _: nn.functional.mse_loss(*output)),
    DataLoader(IMAGES[:1500], batch_size=100, shuffle=True),
    {name: Evaluation([IMAGES[1500:]], seed=0, weights=name) for name in ("own", "ema")},
    split=lambda images: (images, None),
    forward=denoise,
)
final = run(start(work, max_steps=STEPS, seed=0), [ema(0.999, start=100, warmup=True, validate=False), draws])
print(final.metrics)
