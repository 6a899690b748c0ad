import copy

import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from branchnet.stages import split
from tests.stages.toys import Block


def test_one_graph_serves_every_batch_size():
    torch._dynamo.reset()
    network = nn.Sequential(nn.Conv2d(4, 4, 3), Block(), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1)).eval()
    staged = copy.deepcopy(split(network, torch.randn(2, 4, 8, 8), locations=["0", "1"]))
    counter = CompileCounter()
    compiled = torch.compile(staged, fullgraph=True, backend=counter)
    for batch in (2, 5, 3):
        image = torch.randn(batch, 4, 8, 8)
        torch._dynamo.mark_dynamic(image, 0)
        with torch.no_grad():
            assert torch.equal(compiled(image), network(image))
    assert counter.frame_count == 1


def test_training_and_evaluation_compile_to_one_graph_each():
    torch._dynamo.reset()
    network = nn.Sequential(nn.Conv2d(4, 4, 3), Block(), nn.Dropout(0.5), nn.Conv2d(4, 2, 1))
    staged = split(network, torch.randn(2, 4, 8, 8), locations=["1"])
    counter = CompileCounter()
    compiled = torch.compile(staged, fullgraph=True, backend=counter)
    image = torch.randn(3, 4, 8, 8)
    for mode in (True, False, True, False):
        staged.train(mode)
        compiled(image)
    assert counter.frame_count == 2
