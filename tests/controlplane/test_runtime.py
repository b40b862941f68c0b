"""The upkeep of the process."""

from __future__ import annotations

from outrider.controlplane.runtime import Memory

MIB = 1 << 20


class Allocator:
    """Holds `used` bytes in use, and `free` ones that it keeps until it is trimmed."""

    def __init__(self, used: int) -> None:
        self.used = used
        self.free = 0
        self.trims = 0

    def resident(self) -> int:
        return self.used + self.free

    def trim(self, pad: int) -> None:
        self.trims += 1
        self.free = pad


def test_memory_is_given_back_when_a_crowd_has_gone() -> None:
    """Not before, and once more at the next look, for what was just leaving."""
    of = Allocator(60 * MIB)
    memory = Memory(of.resident, of.trim)
    assert not memory.look(2, 2)
    of.used += 100 * MIB
    assert not memory.look(1000, 1000)
    of.used, of.free = 70 * MIB, 90 * MIB
    assert memory.look(10, 1000)
    of.used, of.free = 60 * MIB, 10 * MIB
    assert memory.look(0, 1000)
    assert of.resident() == 60 * MIB


def test_memory_is_given_back_although_a_crowd_came_and_went_between_two_looks() -> None:
    """A thousand connections of a second are as many as those of a minute."""
    of = Allocator(60 * MIB)
    memory = Memory(of.resident, of.trim)
    of.free = 90 * MIB
    assert memory.look(2, 1002)
    assert of.resident() == 60 * MIB


def test_memory_that_is_in_use_is_not_tried_again_and_again() -> None:
    """A store that fills up while connections come and go is no reason to trim at every look."""
    of = Allocator(60 * MIB)
    memory = Memory(of.resident, of.trim)
    memory.look(2, 2)
    of.used += 50 * MIB
    for number in range(1, 20):
        memory.look(2, 2 + 100 * number)
    assert of.trims == 1


def test_memory_that_was_in_use_is_given_back_when_its_users_have_gone() -> None:
    """A look while connections come and go finds their buffers in use; a look when they have gone does not."""
    of = Allocator(60 * MIB)
    memory = Memory(of.resident, of.trim)
    of.used = 80 * MIB
    for number in range(1, 20):
        memory.look(40, 1000 * number)
    of.used, of.free = 60 * MIB, 20 * MIB
    assert memory.look(0, 20_000)
    assert of.resident() == 60 * MIB


def test_a_sidecar_at_rest_holds_no_5_mib_more_than_at_its_least() -> None:
    """What one or two dozen connections over TLS took is given back as well."""
    of = Allocator(60 * MIB)
    memory = Memory(of.resident, of.trim)
    of.free = 5 * MIB
    memory.look(24, 24)
    memory.look(0, 24)
    assert of.resident() == 60 * MIB
