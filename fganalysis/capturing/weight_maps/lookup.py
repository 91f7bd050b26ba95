"""Lookup map: a row is a column of the weights, s_r = W e_i(r). For embeddings, whose inputs are one-hot."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor


@dataclass(frozen=True, eq=False)
class LookupMap:
    """indices: the column i(r) of each row, (row,). n_columns: of the weights. ignored: a column that never learns."""

    indices: Tensor
    n_columns: int
    ignored: int | None = None
    cheap = True

    def _learning(self, guesses: Tensor) -> Tensor:
        """The guesses, those at rows of the ignored column set to zero."""
        if self.ignored is None:
            return guesses
        return guesses * (self.indices != self.ignored)[:, None].to(guesses.dtype)

    @cached_property
    def _used(self) -> tuple[Tensor, Tensor]:
        columns, places = self.indices.unique(return_inverse=True)
        return columns, places

    def image(self, guesses: Tensor) -> Tensor:
        columns, places = self._used
        sums = guesses.new_zeros(*guesses.shape[:-2], len(columns), guesses.shape[-1])
        return sums.index_add_(-2, places, self._learning(guesses))

    def gradients(self, guesses: Tensor) -> Tensor:
        sums = guesses.new_zeros(*guesses.shape[:-2], self.n_columns, guesses.shape[-1])
        return sums.index_add_(-2, self.indices, self._learning(guesses)).mT

    def along(self, weights: Tensor) -> Tensor:
        return self._learning(weights.index_select(-1, self.indices).mT)

    def of_rows(self, rows: Tensor) -> LookupMap:
        return LookupMap(self.indices[rows], self.n_columns, self.ignored)
