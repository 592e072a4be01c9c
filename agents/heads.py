"""Every head there is: what a configuration may name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, cast, get_args

from pydantic import Field

from secondlook.agents.biomedcoop_head import BiomedCoopSpec
from secondlook.agents.cache_head import CacheSpec
from secondlook.agents.coop_head import CoopSpec
from secondlook.agents.description_head import DescriptionSpec
from secondlook.agents.gda_head import GdaSpec
from secondlook.agents.head import HeadSpec
from secondlook.agents.hopfield_head import HopfieldSpec
from secondlook.agents.knn_head import KnnSpec
from secondlook.agents.linear_head import LinearSpec
from secondlook.agents.ncm_head import NcmSpec
from secondlook.agents.nola_head import NolaSpec
from secondlook.agents.ordinal_head import OrdinalSpec
from secondlook.agents.refine_head import RefineSpec
from secondlook.agents.tuned_cache_head import TunedCacheSpec

AnyHead = Annotated[
    LinearSpec
    | GdaSpec
    | NcmSpec
    | KnnSpec
    | HopfieldSpec
    | CacheSpec
    | TunedCacheSpec
    | DescriptionSpec
    | NolaSpec
    | CoopSpec
    | BiomedCoopSpec
    | RefineSpec
    | OrdinalSpec,
    Field(discriminator="kind"),
]
"""One entry of a panel: `kind` says which."""
_SPECS: tuple[type[HeadSpec], ...] = get_args(get_args(AnyHead)[0]) or (get_args(AnyHead)[0],)
KINDS: dict[str, Callable[[], AnyHead]] = {
    spec.model_fields["kind"].default: cast("Callable[[], AnyHead]", spec)
    for spec in sorted(_SPECS, key=lambda spec: spec.trains)
}
"""What makes the settings of every head, by its kind, those that train the last."""
