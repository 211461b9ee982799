"""A callback of one's own, with its tests: pytest examples/test_my_callback.py."""

from math import inf, nan

import attrs

from fsm_train import Flag, Phase, State, Transition, on
from fsm_train.testing import Trace, at, check_callback, drive, simulate


# The callback: stop when the gap between training and validation loss has grown too often.
def stop_on_overfitting(ratio: float = 1.5, patience: int = 2):
    """Stop once the validation loss was more than `ratio` times the training loss in `patience` epochs in a row."""

    @on(Phase.EPOCH_END, memory=0)
    def stop_on_overfitting(state: State, in_a_row: int):
        if state.metrics["valid_loss"] <= ratio * state.metrics["train_loss"]:
            return Transition(memory=0)
        if in_a_row + 1 < patience:
            return Transition(memory=in_a_row + 1)
        return Transition(flags=Flag.STOP_TRAINING, reason=f"overfitting in {patience} epochs in a row")

    return stop_on_overfitting


# One state: what does it answer?
def test_counts_an_epoch():
    answer = stop_on_overfitting()(at(Phase.EPOCH_END, train_loss=1.0, valid_loss=2.0))
    assert answer == Transition(memory=1)


# Several states, one after the other: a good epoch in between begins the count anew.
def test_good_epoch_in_between():
    epochs = [at(Phase.EPOCH_END, train_loss=1.0, valid_loss=loss) for loss in (2.0, 1.0, 2.0, 2.0)]
    flags = [answer.flags for answer in drive(stop_on_overfitting(), epochs)]
    assert flags == [Flag.NONE, Flag.NONE, Flag.NONE, Flag.STOP_TRAINING]


# A whole training, in a millisecond: when does it stop, and why?
def test_stops_a_training():
    final = simulate([stop_on_overfitting()], loss=1.0, valid_loss=[1.2, 1.4, 1.6, 1.8, 2.0])
    assert final.epoch == 4
    assert final.reason == "stop_on_overfitting: overfitting in 2 epochs in a row"


# What happened on the way? print(trace) shows all of it.
def test_speaks_before_the_epoch_is_over():
    trace = Trace()
    simulate([stop_on_overfitting()], valid_loss=[1.0, 2.0], trace=trace)
    trace.assert_order("measure", before="stop_on_overfitting")


# And everything that holds for every callback: it is pure, its memory can be saved, it goes on as before after
# an interrupt, says which metric is missing, … 26 checks in hundreds of drawn trainings.
def test_is_a_good_callback():
    check_callback(stop_on_overfitting(patience=1), examples=50)  # 200 if nothing is said


# A record as memory is as good: made by attrs.frozen, it can be compared, saved and restored.
@attrs.frozen
class Best:
    loss: float = inf


@on(Phase.EPOCH_END, memory=Best())
def tell_the_best(state: State, best: Best):
    loss = state.metrics["valid_loss"]
    return Transition(memory=Best(loss), reason=f"{loss} is the best so far") if loss < best.loss else None


def test_nan_is_never_the_best():
    assert tell_the_best(at(Phase.EPOCH_END, valid_loss=nan)) is None
    check_callback(tell_the_best, examples=50)
