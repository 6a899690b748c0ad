"""The colours of procedural scenes: sets that look well together, as linear RGB."""

from __future__ import annotations

# Each palette: floor, wall, horizon, zenith; then six colours of objects, of which the last also serves furniture.
PALETTES = (
    "d8c3a5 eae7dc f3efe6 8fb9d6 d1495b edae49 00798c 30638e f4f1de 9c6b4a",
    "c98b6b f2e3d0 fbeee0 a8c5da e07a5f 3d405b 81b29a f2cc8f faf3e0 8a5a44",
    "9bb7bd dcebea f1f5ee 7fb2d0 264653 2a9d8f e9c46a f4a261 e76f51 b08968",
    "857e8f dcc4cc ffd9c7 8f8fc0 ff9f87 355070 eaac8b 56aec0 fefae0 6d597a",
    "98a26b e9edc9 f6f3dd 93bfc9 606c38 c1666b dda15e 48829e fefae0 8b5e34",
    "a3a8b1 d5dade eef2f5 84abd6 ef476f ffd166 06b68a 118ab2 f8f9fa 5c677d",
    "d3b9c8 ffeaf0 fff3ee a0c4f2 ff8fab 5390d9 fcbf49 70d08a 9d6edd b98b73",
    "b5a48b efe6d5 f8ead0 9fc0c0 bc4749 386641 a7c957 f2b84b f2e8cf 6f4e37",
)


def _linear(palette: str) -> list[list[float]]:
    return [[(channel / 255) ** 2.2 for channel in bytes.fromhex(colour)] for colour in palette.split()]


SURFACES = [_linear(palette)[:4] for palette in PALETTES]
OBJECT_COLOURS = [_linear(palette)[4:] for palette in PALETTES]
