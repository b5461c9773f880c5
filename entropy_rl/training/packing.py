"""Skewed lengths without padding: whole sequences, prompt | response, one after another in rows of one length.

Shapes: N prompts, B responses, T response positions, R rows per micro-batch, M micro-batches, L positions per row.

Sharing a group's prompt is the cheaper layout while responses fill most of their T positions; if most are short, rows
of whole sequences are cheaper. `Plan.pack` decides for each update from its lengths. Shapes never change with the
lengths: only the number of micro-batches that hold something does, and the train step runs only those.
"""

from typing import Any, NamedTuple, Self

import jax
import numpy as np

Host = np.ndarray | jax.Array  # the fields of a batch on the host, which are NumPy's there


class Packed(NamedTuple):
    """Rows of whole sequences; segment 0 is padding, and a row's sequences are its segments 1, 2, ….

    Attributes:
        tokens: i32[R, M, L].
        position: i32[R, M, L], the place in the sequence.
        segment: i32[R, M, L].
        target: i32[R, M, L], the response token that this position predicts.
        slot: i32[R, M, L], that token's index in [B, T] flattened; B·T if the position predicts none.
    """

    tokens: jax.Array
    position: jax.Array
    segment: jax.Array
    target: jax.Array
    slot: jax.Array


class Plan(NamedTuple):
    """How an update may be laid out.

    Attributes:
        layout: "group", "packed", or "auto": the one that computes fewer positions.
        rows: R, a multiple of the shards that rows are spread over.
        micro: M, enough for the longest possible responses.
        length: L, one sequence of full length.
        group_positions: the positions that the group layout computes, its forward-only pass included.
    """

    layout: str
    rows: int
    micro: int
    length: int
    group_positions: float

    @classmethod
    def of(
        cls,
        layout: str,
        *,
        prompts: int,
        samples: int,
        prompt_len: int,
        max_tokens: int,
        micro_batches: int,
        shards: int,
    ) -> Self:
        """The plan of an update: a packed micro-batch computes about as much as one of groups.

        Args:
            layout: "group", "packed" or "auto".
            prompts: N, of an update.
            samples: per prompt.
            prompt_len: P, prompt positions.
            max_tokens: T.
            micro_batches: of the group layout.
            shards: the parts of the mesh that rows are spread over.
        """
        length, positions = prompt_len + max_tokens - 1, prompts * (prompt_len + samples * (max_tokens - 1))
        rows = max(1, round(positions / micro_batches / length / shards)) * shards
        # with several micro-batches, statistics cost one more forward pass over every position
        passes = 1 if micro_batches == 1 else 4 / 3
        return cls(layout, rows, -(-prompts * samples // rows), length, positions * passes)

    def pack(self, prompt_NxP: Host, prompt_mask_NxP: Host, tokens_BxT: Host, mask_BxT: Host) -> Packed | None:
        """The update in packed rows; None if the group layout is to be used."""
        if self.layout == "group":
            return None
        samples = len(tokens_BxT) // len(prompt_NxP)
        answer_B = mask_BxT.sum(axis=1)
        # the last token predicts nothing, and a response without a token has nothing to be predicted
        length_B = np.where(answer_B > 0, np.repeat(prompt_mask_NxP.sum(axis=1), samples) + answer_B - 1, 0)
        row_B, start_B, used = first_fit(length_B, self.length)
        pieces = -(-used // self.rows)
        # statistics come before the gradient: one more forward pass over every position
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
        # row r is in micro-batch r // R
        shaped: Any = (x.reshape(self.micro, self.rows, self.length).swapaxes(0, 1) for x in flat)
        return Packed(*shaped)


def first_fit(length_B: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray, int]:
    """First fit, longest first: (row_B, start_B, rows used), each sequence's row and its start there.

    >>> row, start, used = first_fit(np.array([3, 5, 2]), 5)
    >>> row.tolist(), start.tolist(), used
    ([1, 0, 1], [0, 0, 3], 2)

    Raises:
        ValueError: A sequence is longer than `room`, the positions of a row.
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
