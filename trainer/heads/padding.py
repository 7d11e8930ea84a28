"""What heads make of padding: nothing. Where it lies, `featurestore.photos.padding` says."""

from torch import Tensor

from trainer.heads.bank import Inputs


def without_padding(inputs: Inputs, x_QGBTPK: Tensor, padding: float) -> Tensor:
    """Values of each sample's own patches, another one in padding."""
    if inputs.photo_QBTP is None:
        return x_QGBTPK
    return x_QGBTPK.where(inputs.photo_QBTP[:, None, ..., None], padding)


def share_of_photo(inputs: Inputs) -> Tensor | float:
    """(Q, 1, B, 1, 1, 1): how many of each sample's patches hold photograph, of all."""
    if inputs.photo_QBTP is None:
        return 1.0
    photo_QBTP = inputs.photo_QBTP.to(inputs.cls_QBTD.dtype)
    share_QB11 = photo_QBTP.mean((2, 3), keepdim=True)
    return share_QB11[:, None, ..., None]
