"""Gist masks: one predicate over segments, rendered dense or as a flex-attention block mask.

    ids ── segments ──> 0 before | 1 gist | 2 after ── condition ──> relabelled ── attends ──> mask

A condition only changes the labels; the rule that reads them is one line, `attends`:

    rows labelled 2 see columns labelled 1 or 2; all other rows see columns labelled 0 or 1.

For a decoder it is ANDed with causality by the model, for an encoder it stands alone. Padding is
not a segment: it is masked by the usual 2-D attention mask. Knows nothing about models.

Shapes: B batch, S sequence, Q queries, V keys (columns).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from gisting.errors import MaskError, OptionError

BEFORE, GIST, AFTER = 0, 1, 2

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(batch, head, query, key) indices -> bool: may this query see this key? (torch's `mask_mod`)"""


def segments(ids: Tensor, gist_id: int) -> Tensor:
    """Label each token 0 (before the gist), 1 (gist) or 2 (after); a row without a gist is all 2.

    Args:
        ids: [B, S] token ids.
        gist_id: the id of `<GIST>`.

    Returns:
        [B, S] int64 labels.

    Raises:
        MaskError: the gist tokens of a row are not one contiguous span.
    """
    is_gist = ids == gist_id
    _check_spans(is_gist)
    seen = is_gist.cumsum(-1)
    total = seen[:, -1:]
    return torch.where(is_gist, GIST, torch.where((seen == 0) & (total > 0), BEFORE, AFTER))


def gist(labels: Tensor) -> Tensor:
    """What follows the gist sees the gist and itself, never the instruction (paper, section 3).

      a b G G x y
    a 1 . . . . .
    b 1 1 . . . .
    G 1 1 1 . . .
    G 1 1 1 1 . .
    x . . 1 1 1 .
    y . . 1 1 1 1
    """
    return labels


def pos_control(labels: Tensor) -> Tensor:
    """Nothing is masked beyond causality: the prompt is visible.

      a b G G x y
    a 1 . . . . .
    b 1 1 . . . .
    G 1 1 1 . . .
    G 1 1 1 1 . .
    x 1 1 1 1 1 .
    y 1 1 1 1 1 1
    """
    return torch.full_like(labels, AFTER)


def neg_control(labels: Tensor) -> Tensor:
    """What follows the gist sees neither the instruction nor the gist.

      a b G G x y
    a 1 . . . . .
    b 1 1 . . . .
    G 1 1 1 . . .
    G 1 1 1 1 . .
    x . . . . 1 .
    y . . . . 1 1
    """
    return torch.where(labels == GIST, BEFORE, labels)


CONDITIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"gist": gist, "pos_control": pos_control, "neg_control": neg_control}
)


def relabel(labels: Tensor, condition: str) -> Tensor:
    """Apply the condition called `condition` to labels [B, S] (raises OptionError)."""
    try:
        return CONDITIONS[condition](labels)
    except KeyError:
        known = ", ".join(CONDITIONS)
        raise OptionError(f"unknown condition {condition!r}; choose one of {known}") from None


def attends(labels: Tensor) -> MaskFunction:
    """The predicate over (batch, head, query, key) that relabelled segments [B, S] stand for.

    Indices past S count as "after": they are tokens that were generated since.
    """
    last = labels.shape[-1] - 1

    def label(batch: Tensor, index: Tensor) -> Tensor:
        return torch.where(index > last, AFTER, labels[batch, index.clamp(max=last)])

    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        rows, columns = label(batch, query), label(batch, key)
        return torch.where(rows == AFTER, columns >= GIST, columns <= GIST)

    return mask


def causal(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """A token sees itself and what precedes it."""
    return query >= key


def visible(padding: Tensor) -> MaskFunction:
    """Columns whose 2-D attention mask `padding` [B, S] is 0 are seen by nobody."""
    kept = padding != 0

    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return kept[batch, key]

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


def draw(mask: Tensor) -> str:
    """Draw one mask [Q, V]: a line a query, `1` where it may attend and `.` where not."""
    return "\n".join(" ".join("1" if cell else "." for cell in row) for row in mask.tolist())


def _check_spans(is_gist: Tensor) -> None:
    starts = is_gist & ~is_gist.roll(1, dims=-1)
    starts[:, 0] = is_gist[:, 0]
    broken = (starts.sum(-1) > 1).nonzero()
    if len(broken):
        row = int(broken[0])
        places = is_gist[row].nonzero().flatten().tolist()
        raise MaskError(
            f"row {row}: gist tokens at positions {places} are not one contiguous span; "
            "a row may hold one span only"
        )
