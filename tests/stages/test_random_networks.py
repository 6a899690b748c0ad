import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from branchnet.errors import SplitError
from branchnet.stages import candidate_locations, split
from tests.stages.checks import assert_evaluates_alike, assert_same_keys, assert_trains_alike
from tests.stages.toys import RandomNetwork, random_networks

EXAMPLE = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0))


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
@given(random_networks(), st.data())
def test_every_cut_of_a_random_network_is_faithful(steps, data):
    torch.manual_seed(0)
    network = RandomNetwork(steps)
    names = [place.name for place in candidate_locations(network, EXAMPLE)]
    some = data.draw(st.sampled_from(names))
    for locations in (names, [some]):
        staged = split(network, EXAMPLE, locations=locations)
        assert staged.locations == tuple(locations)
        assert staged.trainable
        assert_same_keys(network, staged)
        assert_evaluates_alike(network, staged, EXAMPLE)
        assert_trains_alike(network, staged, EXAMPLE)


@settings(max_examples=10, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(random_networks(), st.integers(1, 20))
def test_a_number_of_locations_is_kept_or_refused(steps, count):
    network = RandomNetwork(steps).eval()
    places = candidate_locations(network, EXAMPLE)
    if count > len(places):
        with pytest.raises(SplitError, match=rf"\b{len(places)}\b"):
            split(network, EXAMPLE, locations=count)
        return
    staged = split(network, EXAMPLE, locations=count)
    assert len(staged.stages) == len(staged.locations) == count
    assert len(set(staged.locations)) == count
