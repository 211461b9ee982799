# python examples/actor_critic.py: an actor learns to walk home from a critic, which learns from where the actor walks.
import copy

import attrs
import torch
from torch import Tensor, nn

from fsm_train import Alternating, Command, Phase, Player, State, Transition, carries_out, on, run, start


class Walk:  # in the plane, in steps of at most 0.3; a step is worth how near to home it ends
    def __init__(self) -> None:
        torch.manual_seed(0)
        self.actor = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2), nn.Tanh())
        self.value = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 1))
        self.target = copy.deepcopy(self.value).requires_grad_(False)
        self.actor_adam, self.value_adam = (torch.optim.Adam(n.parameters(), 3e-3) for n in (self.actor, self.value))

    def __iter__(self):  # 200 batches, walked by the actor as it is then
        for place in (2 * torch.randn(64, 2) for _ in range(200)):
            step = (self.actor(place).detach() + 0.3 * torch.randn(64, 2)).clamp(-1, 1)
            yield (place, step, place + 0.3 * step), -(place + 0.3 * step).norm(dim=1, keepdim=True)

    def critic(self, seen: tuple[Tensor, ...], worth: Tensor) -> Tensor:
        wanted = worth + 0.9 * self.target(torch.cat([seen[2], self.actor(seen[2]).detach()], dim=1))
        return nn.functional.mse_loss(self.value(torch.cat(seen[:2], dim=1)), wanted)

    def policy(self, seen: tuple[Tensor, ...], _: Tensor) -> Tensor:
        return -self.value(torch.cat([seen[0], self.actor(seen[0])], dim=1)).mean()

    def follow(self) -> None:
        torch._foreach_lerp_([*self.target.parameters()], [p.detach() for p in self.value.parameters()], 0.05)


@attrs.frozen
class Follow(Command): ...


@on(Phase.STEP_END, commands={Follow})
def follow(state: State) -> Transition | None:
    return Transition(commands=(Follow(),)) if state.player == "critic" else None


by_hand, walk = Walk(), Walk()
carries_out(Follow)(lambda work, command: walk.follow())
critic = Player(walk.value, walk.value_adam, walk.critic)
actor = Player(walk.actor, walk.actor_adam, walk.policy, every=2)
final = run(start(Alternating({"critic": critic, "actor": actor}, walk), epochs=3, seed=1), [follow])
torch.manual_seed(1)
for batch, (seen, worth) in enumerate((each for _ in range(3) for each in by_hand), start=1):
    turns = (by_hand.value_adam, by_hand.critic, by_hand.follow), (by_hand.actor_adam, by_hand.policy, lambda: None)
    for adam, loss, after in turns[: 2 - batch % 2]:
        adam.zero_grad()
        loss(seen, worth).backward()
        adam.step()
        after()
for ours, plain in ((walk.actor, by_hand.actor), (walk.value, by_hand.value), (walk.target, by_hand.target)):
    assert all(map(torch.equal, ours.parameters(), plain.parameters())), "not the plain loop"
print(f"at (2, 0) it steps {walk.actor(torch.tensor([2.0, 0.0]))[0]:.2f} east, actor {final.steps_of('actor')} steps")
