"""The table of the photographs to predict, of which some heads read columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd

from featurestore.errors import InputError
from featurestore.photos.catalog import read_test
from featurestore.photos.find import spelled_as
from predictor.members.member import Member


@dataclass(frozen=True)
class Table:
    """Photographs by image_id with all columns of a CSV; not read where no head needs one."""

    images: pd.DataFrame | None
    where: Path | None

    @classmethod
    def of(cls, members: Sequence[Member], csv: Path | None) -> Self:
        """InputError where members read columns, and there is no table of them, or it lacks one."""
        reading = [member for member in members if member.columns]
        if not reading:
            return cls(None, None)
        if csv is None:
            raise InputError(
                f"{reading[0].name}: its heads read {', '.join(reading[0].columns.names)} beside "
                "the photographs; give their table, Predictor.load(..., table=CSV)"
            )
        images = read_test(csv).images
        for member in reading:
            member.columns.encoded(images, csv)  # refused now, not at the first photograph
        return cls(images, csv)

    def rows(
        self,
        image_ids: Sequence[str],
        members: Sequence[Member],
    ) -> dict[str, list[np.ndarray]]:
        """(C,) what each member reads beside each photograph; InputError for one without a row."""
        if self.images is None:
            return dict.fromkeys(image_ids, [np.empty(0)] * len(members))
        known = spelled_as(self.images["image_id"], image_ids)
        place = {image_id: row for row, image_id in enumerate(known)}
        if absent := [image_id for image_id in image_ids if image_id not in place]:
            raise InputError(f"{self.where}: has no row of {', '.join(absent[:5])}; add it")
        encoded = [member.columns.encoded(self.images, self.where) for member in members]
        return {image_id: [x_NC[place[image_id]] for x_NC in encoded] for image_id in image_ids}
