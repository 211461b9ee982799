# python examples/mean_teacher.py: digits from 50 labels, and from 1387 images without one, judged by a mean teacher.
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fsm_train import Supervised, run, start, together, weights
from fsm_train.callbacks import ema

EPOCHS, DECAY = 20, 0.98
images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
images = (images / 16).float()
few, others = TensorDataset(images[:50], labels[:50]), TensorDataset(images[50:1437])


def set_up():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10))
    train = together(DataLoader(few, 10, shuffle=True), DataLoader(others, 64, shuffle=True), until="longest")
    return model, torch.optim.Adam(model.parameters(), lr=2e-3), train


def shifted(images):
    return images.view(-1, 8, 8).roll(torch.randint(-1, 2, (2,)).tolist(), (1, 2)).flatten(1)


def error(output, target):
    labelled, student, teacher = output
    return nn.functional.cross_entropy(labelled, target) + 5 * (student.softmax(1) - teacher.softmax(1)).square().mean()


def student_and_teacher(model, inputs):
    labelled, student = model(inputs[0]), model(shifted(inputs[1]))
    with weights(work, "teacher"):
        return labelled, student, model(inputs[1])


model, optimizer, train = set_up()
work = Supervised(
    *(model, optimizer, error, train),
    split=lambda batch: ((batch[0][0], batch[1][0]), batch[0][1]),
    samples=lambda inputs, target: len(target),
    forward=student_and_teacher,
)
steps = run(start(work, epochs=EPOCHS), [ema(DECAY, initial=True, name="teacher")]).step  # it ends with the teacher

teacher, (plain, optimizer, train) = set_up()[0], set_up()
for (inputs, target), (unlabelled,) in (batch for _ in range(EPOCHS) for batch in train):
    error((plain(inputs), plain(shifted(unlabelled)), teacher(unlabelled).detach()), target).backward()
    optimizer.step()
    optimizer.zero_grad()
    for slow, fast in zip(teacher.parameters(), plain.parameters(), strict=True):
        slow.data.lerp_(fast.data, 1 - DECAY)
assert all(torch.equal(*both) for both in zip(model.parameters(), teacher.parameters(), strict=True))

alone, optimizer, train = set_up()
run(start(Supervised(alone, optimizer, nn.functional.cross_entropy, train.loaders[0]), max_steps=steps))
scores = [(each.eval()(images[1437:]).argmax(dim=1) == labels[1437:]).float().mean().item() for each in (model, alone)]
print("accuracy on unseen digits: {:.3f}; from the 50 labels alone: {:.3f}".format(*scores))
