"""`Place`: how far a pass over the data has come, so that a resumed run goes on with the next batch."""

from __future__ import annotations

from typing import NamedTuple


class Place(NamedTuple):
    """A place in an epoch: what has been given out of it.

    Attributes:
        epoch: number of the epoch, from 0.
        batches: batches that each process has given out, with this run's batch size and number of processes.
        images: images that all processes together have seen, whatever the batch size was then.
    """

    epoch: int = 0
    batches: int = 0
    images: int = 0

    def begin(self, epoch: int) -> Place:
        """Where a pass over an epoch begins: here in the epoch of this place, else at the start."""
        return self if epoch == self.epoch else Place(epoch)

    def rolled(self, total: int) -> Place:
        """This place, or the start of the next epoch if all `total` batches have been given out.

        A checkpoint at the end of an epoch cut short (`limit_train_batches`) is then void for the next epoch, which
        Lightning resumes with.
        """
        return Place(self.epoch + 1) if self.batches >= total else self
