"""Neural style: an image is what is trained, towards the content of one image and the style of another."""

import torch
from torch import nn

from fsm_train import Supervised, run, start
from tests.models import digits

TRICK = "a module that is the image"


def setup():
    torch.manual_seed(0)
    images = digits(8).tensors[0].view(-1, 1, 8, 8)
    features = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)).eval()
    return features.requires_grad_(False), images[:1], images[1:2]


def gram(features):
    flat = features.flatten(2)
    return flat @ flat.mT / flat.shape[-1]


def style_loss(found, content, style):
    likeness = nn.functional.mse_loss(found, content)
    manner = nn.functional.mse_loss(gram(found), gram(style))
    return {"loss": likeness + 10 * manner, "content": likeness, "style": manner}


def plain():
    features, content, style = setup()
    image = content.clone().requires_grad_()
    optimizer = torch.optim.Adam([image], lr=0.02)
    content, style = features(content), features(style)
    for _ in range(30):
        losses = style_loss(features(image), content, style)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        with torch.no_grad():
            image.clamp_(0, 1)
    return image


def machine():
    features, content, style = setup()
    image = nn.ParameterList([content.clone()])
    optimizer = torch.optim.Adam(image.parameters(), lr=0.02)
    optimizer.register_step_post_hook(lambda *_: image[0].data.clamp_(0, 1))
    batches = [(features(content), features(style))]
    work = Supervised(
        *(image, optimizer, lambda found, target: style_loss(found, *target), batches),
        split=lambda batch: (None, batch),
        forward=lambda image, _: features(image[0]),
    )
    run(start(work, max_steps=30))
    return image[0]
