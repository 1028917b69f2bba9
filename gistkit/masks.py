"""Gist masks: one predicate over segments, as a dense mask or a flex-attention block mask.

    ids ── segments ──> 0 before | 1 gist | 2 after ── condition ──> relabelled ── attends ──> mask

A condition only changes the labels; the rule that reads them is one line, `attends`:

    rows labelled 2 see columns labelled 1 or 2; all other rows see columns labelled 0 or 1.

For a decoder it is ANDed with causality by the model, for an encoder it stands alone. Padding is
not a segment: it is masked by the usual 2-D attention mask. Knows nothing about models.

A packed row holds several documents, one after the other. `documents` numbers them, -1 at padding;
segments are counted in each alone, and a token never sees another document. Without it a row is
one document.

Shapes: B batch, S sequence, Q queries, V keys (columns).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from gistkit.conditions import AFTER, BEFORE, GIST, condition_named
from gistkit.errors import MaskError

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(batch, head, query, key) indices -> bool: may this query see this key? (torch's `mask_mod`)"""


def segments(ids: Tensor, gist_id: int, documents: Tensor | None = None) -> Tensor:
    """Label each token 0 (before the gist), 1 (gist) or 2 (after); all 2 where there is no gist.

    Args:
        ids: [B, S] token ids.
        gist_id: the id of `<GIST>`.
        documents: [B, S] number of each token's document, in packed rows.

    Returns:
        [B, S] int64 labels.

    Raises:
        MaskError: the gist tokens of a row (or document) are not one contiguous span.
    """
    is_gist = ids == gist_id
    starts = document_starts(torch.zeros_like(ids) if documents is None else documents)
    _check_spans(is_gist, starts)
    seen = is_gist.cumsum(-1)
    before = _from_start(seen - is_gist.long(), starts)  # gist tokens of earlier documents
    total = _from_end(seen, starts) - before
    return torch.where(is_gist, GIST, torch.where((seen == before) & (total > 0), BEFORE, AFTER))


def relabelled(
    ids: Tensor,
    gist_id: int,
    condition: str | Sequence[str],
    documents: Tensor | None = None,
) -> Tensor:
    """Segments of `ids` [B, S] under one condition, or under one for each row or document."""
    return relabel(segments(ids, gist_id, documents), condition, documents)


def document_starts(documents: Tensor) -> Tensor:
    """True at the first token of each document; documents [B, S]."""
    starts = documents != documents.roll(1, dims=-1)
    starts[:, 0] = True
    return starts


def document_positions(documents: Tensor) -> Tensor:
    """Positions [B, S] counted from the start of each document."""
    index = torch.arange(documents.shape[-1], device=documents.device).expand(documents.shape)
    return index - _from_start(index, document_starts(documents))


def relabel(
    labels: Tensor, condition: str | Sequence[str], documents: Tensor | None = None
) -> Tensor:
    """Apply a condition to labels [B, S].

    Args:
        labels: segments.
        condition: one for all, or one for each row (for each document, where `documents` is given).
        documents: [B, S] number of each token's document, in packed rows.

    Raises:
        OptionError: no condition has that name.
    """
    if isinstance(condition, str):
        return condition_named(condition).relabel(labels)
    if documents is None:
        documents = torch.arange(len(labels), device=labels.device)[:, None].expand(labels.shape)
    result = labels
    for name in dict.fromkeys(condition):
        has = torch.tensor([other == name for other in condition], device=labels.device)
        renamed = condition_named(name).relabel(labels)
        result = torch.where(has[documents.clamp(min=0)], renamed, result)
    return result


def attends(labels: Tensor, documents: Tensor | None = None) -> MaskFunction:
    """The predicate over (batch, head, query, key) that relabelled segments [B, S] stand for.

    Indices past S count as "after": they are tokens that were generated since. With `documents` a
    token sees its own document only.
    """
    last = labels.shape[-1] - 1

    def label(batch: Tensor, index: Tensor) -> Tensor:
        return torch.where(index > last, AFTER, labels[batch, index.clamp(max=last)])

    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        rows, columns = label(batch, query), label(batch, key)
        return torch.where(rows == AFTER, columns >= GIST, columns <= GIST)

    return mask if documents is None else both(mask, same_document(documents, documents))


def same_document(queries: Tensor, keys: Tensor) -> MaskFunction:
    """A token sees tokens of its own document only; numbers [B, Q] and [B, V]."""

    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return queries[batch, query] == keys[batch, key]

    return mask


def causal(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """A token sees itself and what precedes it."""
    return query >= key


def visible(padding: Tensor) -> MaskFunction:
    """No query sees columns whose 2-D attention mask `padding` [B, S] is 0."""
    present = padding != 0

    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return present[batch, key]

    return mask


def both(*functions: MaskFunction) -> MaskFunction:
    """The intersection of masks."""

    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        result = functions[0](batch, head, query, key)
        for function in functions[1:]:
            result = result & function(batch, head, query, key)
        return result

    return mask


def dense(
    function: MaskFunction, batch: int, queries: int, keys: int, device: str = "cpu"
) -> Tensor:
    """Render a mask as booleans [B, 1, Q, V]; True = may attend (the form sdpa takes)."""
    b = torch.arange(batch, device=device).view(-1, 1, 1, 1)
    q = torch.arange(queries, device=device).view(1, 1, -1, 1)
    v = torch.arange(keys, device=device).view(1, 1, 1, -1)
    return function(b, torch.zeros_like(b), q, v).expand(batch, 1, queries, keys)


def block(
    function: MaskFunction, batch: int, queries: int, keys: int, device: str = "cpu"
) -> BlockMask:
    """Render a mask as a flex-attention block mask."""
    return create_block_mask(function, batch, None, queries, keys, device=device)


def cross_attention(labels: Tensor, padding: Tensor) -> Tensor:
    """What a decoder may see of an encoder's output: gist and after. [B, S] int64, padding 0.

    The published neg_control lets the decoder see padding; here padding is never seen.
    """
    return ((labels >= GIST) & (padding != 0)).long()


def render(mask: Tensor) -> str:
    """One mask as text [Q, V]: a line a query, `1` where it may attend and `.` where not."""
    return "\n".join(" ".join("1" if cell else "." for cell in row) for row in mask.tolist())


def _from_start(rising: Tensor, starts: Tensor) -> Tensor:
    # the value at the start of each document, for all its tokens; `rising` never falls along a row
    return torch.where(starts, rising, 0).cummax(-1).values


def _from_end(rising: Tensor, starts: Tensor) -> Tensor:
    ends = starts.roll(-1, dims=-1)
    ends[:, -1] = True
    highest = rising[:, -1:]
    return torch.where(ends, rising, highest).flip(-1).cummin(-1).values.flip(-1)


def _check_spans(is_gist: Tensor, starts: Tensor) -> None:
    begins = is_gist & (starts | ~is_gist.roll(1, dims=-1))
    number = starts.long().cumsum(-1) - 1  # of the document within its row
    spans = torch.zeros_like(number).scatter_add_(-1, number, begins.long())
    broken = (spans > 1).nonzero()
    if len(broken):
        row, document = broken[0].tolist()
        found = (is_gist[row] & (number[row] == document)).nonzero().flatten().tolist()
        where = f"row {row}" if bool(number.max() == 0) else f"row {row}, document {document}"
        raise MaskError(
            f"{where}: gist tokens at positions {found} are not one contiguous span; "
            "a row may hold one span only"
        )
