"""Names of the sizes of `lm.presets`, which the command line shows before JAX is imported."""

from typing import Literal, TypeAlias, get_args

Size: TypeAlias = Literal["tiny", "150M", "0.5B", "1.5B", "4B", "9B"]
SIZES: tuple[Size, ...] = get_args(Size)
