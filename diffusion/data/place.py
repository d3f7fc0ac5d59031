"""`Place`: the position in a pass over the data, from which a resumed run continues with the next batch."""

from __future__ import annotations

from typing import NamedTuple


class Place(NamedTuple):
    """A position in an epoch: the batches and images already yielded.

    Attributes:
        epoch: number of the epoch, from 0.
        batches: batches that each process has yielded, with this run's batch size and number of processes.
        images: images that all processes together have seen, whatever the batch size was.
    """

    epoch: int = 0
    batches: int = 0
    images: int = 0

    def begin(self, epoch: int) -> Place:
        """The start of a pass over an epoch: this place if it is in that epoch, else the beginning."""
        return self if epoch == self.epoch else Place(epoch)

    def rolled(self, total: int) -> Place:
        """This place, or the start of the next epoch if all `total` batches have been yielded.

        A checkpoint at the end of an epoch cut short (`limit_train_batches`) is then void for the next epoch, which
        Lightning resumes with.
        """
        return Place(self.epoch + 1) if self.batches >= total else self
