"""What the stand-in must see, tried through PyTorch: legal work goes through, the rest is told. Run by tests/cuda_path.rs."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

torch.backends.cudnn.benchmark = True
net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)).cuda()
optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, fused=True)
images, labels = torch.rand(4, 3, 8, 8, device="cuda"), torch.zeros(4, dtype=torch.long, device="cuda")
side = torch.cuda.Stream()


def step():
    optimizer.zero_grad()
    cross_entropy(net(images), labels).backward()
    optimizer.step()


def on_the_side(join):
    current = torch.cuda.current_stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        net[0](images)
    if join:
        current.wait_stream(side)


def captured(work):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def refused(what, words):
    try:
        what()
    except RuntimeError as error:
        assert words in str(error), f"{error} does not say: {words}"
    else:
        raise AssertionError(f"went through, expected: {words}")
    torch.cuda.synchronize()


with torch.cuda.stream(side):
    for _ in range(3):
        step()
torch.cuda.synchronize()
for legal in [step, lambda: on_the_side(join=True)]:
    captured(legal).replay()

spoiled = "operation failed due to a previous error during capture"
refused(lambda: captured(lambda: images.sum().item()), spoiled)
refused(lambda: captured(lambda: images.nonzero()), spoiled)
refused(lambda: captured(torch.cuda.synchronize), spoiled)
refused(lambda: captured(lambda: on_the_side(join=False)), "unjoined work")

# Before anybody has waited a copy has brought nothing.
landed = torch.empty(4, 3, 8, 8).pin_memory()
landed.copy_(images, non_blocking=True)
assert landed.isnan().all()
torch.cuda.synchronize()
assert (landed == 0).all() and images.isfinite().all().item() is True

torch.use_deterministic_algorithms(True)
refused(lambda: images.flatten().histc(), "does not have a deterministic implementation")
refused(lambda: images + images.cpu(), "same device")
refused(lambda: torch.empty(1 << 40, device="cuda"), "out of memory")
print("the stand-in sees what it must")
