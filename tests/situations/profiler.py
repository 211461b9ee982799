"""torch's profiler over some steps of a training, which is told of each."""

from torch import nn
from torch.profiler import ProfilerActivity, profile, schedule

from fsm_train import Phase, Supervised, iterate, start
from tests.models import digits, network, sgd, shuffled

TRICK = ""


def setup():
    model = network()
    steps = schedule(wait=1, warmup=1, active=2, repeat=1)
    return model, sgd(model), shuffled(digits()), profile(activities=[ProfilerActivity.CPU], schedule=steps)


def plain():
    model, optimizer, train, profiler = setup()
    with profiler:
        for images, labels in train:
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            profiler.step()
    return model, calls(profiler)


def calls(profiler):
    """How often some operations were called while the profiler was active."""
    counts = {event.key: event.count for event in profiler.key_averages()}
    return {name: counts[name] for name in ("aten::addmm", "aten::native_batch_norm", "aten::nll_loss_backward")}


def machine():
    model, optimizer, train, profiler = setup()
    work = Supervised(model, optimizer, nn.functional.cross_entropy, train)
    with profiler:
        for state in iterate(start(work, epochs=1), at=[Phase.BATCH_END]):
            if state.phase is Phase.BATCH_END:
                profiler.step()
    return model, calls(profiler)
