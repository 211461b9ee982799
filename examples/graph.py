# python examples/graph.py: a graph network reads digits, each a graph of its pixels with ink; batches are objects.
import attrs
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fsm_train import Supervised, run, start


@attrs.frozen
class Graphs:
    """Graphs side by side, as a Batch of torch_geometric: features and edges of nodes, whose graph each is, labels."""

    nodes: Tensor
    edges: Tensor
    graph: Tensor
    labels: Tensor

    def to(self, device):
        return Graphs(*(part.to(device) for part in attrs.astuple(self, recurse=False)))


def graph(pixels, label):
    places = pixels.view(8, 8).nonzero()
    edges = (torch.cdist(places.float(), places.float()) < 1.5).nonzero().T  # to the eight pixels around, and itself
    nodes = torch.cat([places / 8, pixels[pixels > 0, None] / 16], dim=1).float()
    return Graphs(nodes, edges, torch.zeros(len(nodes), dtype=torch.long), label[None])


def collate(graphs):
    sizes = torch.tensor([len(graph.nodes) for graph in graphs])
    edges = [graph.edges + begin for graph, begin in zip(graphs, sizes.cumsum(0) - sizes, strict=True)]
    nodes, labels = (torch.cat([getattr(graph, part) for graph in graphs]) for part in ("nodes", "labels"))
    return Graphs(nodes, torch.cat(edges, dim=1), torch.arange(len(graphs)).repeat_interleave(sizes), labels)


class GraphNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.head = nn.ModuleList(nn.Linear(2 * n, 64) for n in (3, 64, 64)), nn.Linear(64, 10)

    def forward(self, graphs):
        hidden, (begin, end) = graphs.nodes, graphs.edges
        for layer in self.layers:
            hidden = layer(torch.cat([hidden, torch.zeros_like(hidden).index_add(0, end, hidden[begin])], dim=1)).relu()
        return self.head(torch.segment_reduce(hidden, "max", lengths=graphs.graph.bincount()))


torch.manual_seed(0)
data = [graph(*pair) for pair in zip(*map(torch.tensor, load_digits(return_X_y=True)), strict=True)]
work = Supervised(
    *(model := GraphNetwork(), torch.optim.Adam(model.parameters(), lr=3e-3), nn.CrossEntropyLoss()),
    *(DataLoader(part, batch_size=32, shuffle=True, collate_fn=collate) for part in (data[:1437], data[1437:])),
    split=lambda graphs: (graphs, graphs.labels),
    samples=lambda graphs, labels: len(labels),  # the loss is a mean over graphs; if over nodes, len(graphs.nodes)
    metrics={"accuracy": lambda output, labels: (output.argmax(dim=1) == labels).float().mean()},
)
print((final := run(start(work, epochs=12, seed=0))).metrics)
