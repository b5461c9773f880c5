"""Skewed lengths without padding: whole sequences, prompt | response, one after another in rows of one length.

Shapes: B responses, T response positions, R rows a micro-batch, M micro-batches, L positions a row.

A group's shared prompt is the cheaper layout while responses fill their room; where most of them are short, rows of
whole sequences are. `Plan.pack` decides for each update from its lengths. Shapes never change with the lengths: the
number of micro-batches that hold something does, and the train step runs only these.
"""

from typing import Any, NamedTuple

import numpy as np


class Packed(NamedTuple):
    """Rows of whole sequences; segment 0 is padding, and a row's sequences are its segments 1, 2, ….

    Attributes:
      tokens, position, segment: i32[R, M, L].
      target: i32[R, M, L], the response token that this position predicts.
      slot: i32[R, M, L], where that token stands in [B, T] flattened; B·T where the position predicts none.
    """

    tokens: Any
    position: Any
    segment: Any
    target: Any
    slot: Any


class Plan(NamedTuple):
    """How an update may be laid out.

    Attributes:
      layout: "group", "packed", or "auto": the one that computes fewer positions.
      rows: R, a multiple of the devices that rows are spread over.
      micro: M, enough for the longest responses there can be.
      length: L, one sequence of full length.
      group_positions: what the group layout computes, its forward-only pass included, in positions.
    """

    layout: str
    rows: int
    micro: int
    length: int
    group_positions: float

    def pack(self, prompt_NxP, prompt_mask_NxP, tokens_BxT, mask_BxT) -> Packed | None:
        """The update in packed rows, or None where the group layout serves."""
        if self.layout == "group":
            return None
        samples = len(tokens_BxT) // len(prompt_NxP)
        answer_B = mask_BxT.sum(axis=1)
        # the last token predicts nothing, and a response without a token has nothing to predict
        length_B = np.where(answer_B > 0, np.repeat(prompt_mask_NxP.sum(axis=1), samples) + answer_B - 1, 0)
        row_B, start_B, used = first_fit(length_B, self.length)
        pieces = -(-used // self.rows)
        # statistics come before the gradient: a forward pass more for every position
        if self.layout == "auto" and pieces * self.rows * self.length * 4 / 3 >= self.group_positions:
            return None
        flat = np.zeros((5, self.rows * self.micro, self.length), np.int32)
        flat[4] = mask_BxT.size
        number = np.zeros(len(flat[0]), np.int32)
        for b in np.flatnonzero(length_B):
            row, at, n = row_B[b], start_B[b], length_B[b]
            asked = prompt_NxP[b // samples][prompt_mask_NxP[b // samples] > 0]
            answer = tokens_BxT[b, : answer_B[b]]
            number[row] += 1
            flat[0, row, at : at + n] = np.concatenate([asked, answer])[:n]
            flat[1, row, at : at + n] = np.arange(n)
            flat[2, row, at : at + n] = number[row]
            first = at + len(asked) - 1
            flat[3, row, first : at + n] = answer
            flat[4, row, first : at + n] = b * mask_BxT.shape[1] + np.arange(len(answer))
        # row r stands in micro-batch r // R
        return Packed(*(x.reshape(self.micro, self.rows, self.length).swapaxes(0, 1) for x in flat))


def first_fit(length_B: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray, int]:
    """First fit, longest first: each sequence's row and its start there, and how many rows are used.

    Raises:
      ValueError: a sequence longer than a row.
    """
    if length_B.max(initial=0) > room:
        raise ValueError(f"a sequence of {length_B.max()} positions does not fit in a row of {room}")
    row_B, start_B = np.zeros_like(length_B), np.zeros_like(length_B)
    free = np.full(max(1, len(length_B)), room)
    for b in np.argsort(-length_B, kind="stable"):
        if length_B[b]:
            row_B[b] = np.argmax(free >= length_B[b])
            start_B[b] = room - free[row_B[b]]
            free[row_B[b]] -= length_B[b]
    return row_B, start_B, int((free < room).sum())
