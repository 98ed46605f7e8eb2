"""Operators that reduce, move or pick along axes."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.export.backends.operators.table import IMAGE, LINE, ROWS, TOKENS, WIDE, functions, layers, normal, whole

functions(
    "reductions",
    IMAGE,
    mean=lambda x: x.mean((2, 3)),
    mean_all=torch.mean,
    sum=lambda x: x.sum(1),
    sum_all=torch.sum,
    amax=lambda x: x.amax(1, keepdim=True),
    amin=lambda x: x.amin((2, 3)),
    max_all=torch.max,
    min_all=torch.min,
    prod=lambda x: x.prod(-1),
    max_dim=lambda x: x.max(1),
    min_dim=lambda x: x.min(-1, keepdim=True),
    argmax=lambda x: x.argmax(1),
    argmax_keep=lambda x: x.argmax(2, keepdim=True),
    argmax_all=lambda x: x.argmax(),
    argmin=lambda x: x.argmin(-1),
    topk=lambda x: x.topk(3, -1),
    topk_channels=lambda x: x.topk(2, 1),
    topk_smallest=lambda x: x.topk(3, -1, largest=False),
    sort=lambda x: x.sort(-1),
    sort_descending=lambda x: x.sort(1, descending=True),
    argsort=lambda x: x.argsort(-1),
    median=lambda x: x.median(-1)[0],
    kthvalue=lambda x: x.kthvalue(2, -1)[0],
    var=lambda x: x.var(1),
    var_population=lambda x: x.var((2, 3), unbiased=False),
    std=lambda x: x.std(-1, keepdim=True),
    var_mean=lambda x: torch.var_mean(x, (2, 3)),
    norm=lambda x: x.norm(dim=1),
    norm_one=lambda x: x.norm(1, -1),
    norm_all=torch.linalg.vector_norm,
    logsumexp=lambda x: x.logsumexp(1),
    cumsum=lambda x: x.cumsum(-1),
    cumsum_channels=lambda x: x.cumsum(1),
    all_close=lambda x: (x.abs() < 5).all(),
    normalize=lambda x: F.normalize(x, dim=1),
)
functions(
    "reductions", ROWS, cumprod=lambda x: x.cumprod(1), cummax=lambda x: x.cummax(1)[0], cummin=lambda x: x.cummin(1)[0]
)
functions("reductions", ROWS, native=False, cummax_at=lambda x: x.cummax(1)[1])
functions(
    "reductions",
    TOKENS,
    TOKENS,
    cosine_similarity=lambda x, y: F.cosine_similarity(x, y, -1),
    distance=F.pairwise_distance,
)
functions("reductions", ROWS, normal(4, 5), cdist=torch.cdist)

functions(
    "shapes and data movement",
    WIDE,
    reshape=lambda x: x.reshape(2, 4, -1),
    flatten=lambda x: x.flatten(1),
    unflatten=lambda x: x.unflatten(1, (2, 4)),
    squeeze=lambda x: x[:, :1].squeeze(1),
    unsqueeze=lambda x: x.unsqueeze(2) * 2,
    permute=lambda x: x.permute(0, 2, 3, 1).contiguous(),
    transpose=lambda x: x.transpose(1, 3),
    movedim=lambda x: x.movedim(1, -1),
    swapaxes=lambda x: x.swapaxes(2, 3),
    cat=lambda x: torch.cat([x, 2 * x], 1),
    cat_many=lambda x: torch.cat([x, 2 * x, -x, x + 1, x - 1, x * x, x.abs()], 2),
    stack=lambda x: torch.stack([x, 2 * x], 1),
    split=lambda x: [part + number for number, part in enumerate(x.split(3, 1))],
    chunk=lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    tensor_split=lambda x: [part * 2 for part in x.tensor_split(3, -1)],
    unbind=lambda x: x.unbind(1)[3] - x.unbind(1)[0],
    narrow=lambda x: x.narrow(2, 1, 3),
    slice=lambda x: x[:, 2:5, 1:, :-1],
    slice_step=lambda x: x[:, ::2, 1::3],
    select=lambda x: x[:, 3],
    flip=lambda x: x.flip(-1),
    flip_two=lambda x: x.flip((1, 2)),
    expand=lambda x: x[:, :1].expand(2, 3, 6, 8).relu(),
    repeat=lambda x: x.repeat(1, 2, 1, 3),
    tile=lambda x: x.tile(2, 1),
    repeat_interleave=lambda x: x.repeat_interleave(2, 1),
    roll=lambda x: x.roll((2, -1), (2, 3)),
    roll_flat=lambda x: x.roll(5),
    unfold=lambda x: x.unfold(3, 4, 2),
    pixel_shuffle=lambda x: F.pixel_shuffle(x, 2),
    pixel_unshuffle=lambda x: F.pixel_unshuffle(x, 2),
    channel_shuffle=lambda x: F.channel_shuffle(x, 4),
    tril=lambda x: x.tril(),
    triu=lambda x: x.triu(1),
    diagonal=lambda x: x.diagonal(1, 2, 3),
    meshgrid=lambda x: x + torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")[0],
    zeros_like=lambda x: torch.cat([x, torch.zeros_like(x)], 1),
    full=lambda x: x + torch.full((6, 8), 0.5),
    new_ones=lambda x: torch.cat([x, x.new_ones(2, 1, 6, 8)], 1),
    constant_output=lambda x: (x * 2, torch.arange(6), torch.full((2, 3), 0.5)),
    input_as_output=lambda x: (x, x > 0, x),
    linspace=lambda x: x * torch.linspace(0, 1, 8),
    rot90=lambda x: x.rot90(1, (2, 3)),
    slice_write=lambda x: torch.slice_scatter(x, x[:, :2] * 2, 1, 3, 5),
    select_write=lambda x: torch.select_scatter(x, x[:, 0] * 2, 1, 3),
    im2col=lambda x: F.unfold(x, 3, padding=1, stride=2),
)
functions("shapes and data movement", normal(1, 12, 20), col2im=lambda x: F.fold(x, (5, 6), 2))

functions(
    "padding",
    IMAGE,
    pad=lambda x: F.pad(x, (1, 2, 0, 3)),
    pad_value=lambda x: F.pad(x, (1, 2), value=-2.0),
    pad_negative=lambda x: F.pad(x, (-1, 2, 1, -2)),
    pad_reflect=lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    pad_reflect_wide=lambda x: F.pad(x, (4, 5, 3, 2), mode="reflect"),
    pad_replicate=lambda x: F.pad(x, (2, 1, 1, 2), mode="replicate"),
    pad_circular=lambda x: F.pad(x, (2, 1, 1, 2), mode="circular"),
)
functions("padding", LINE, pad_reflect_1d=lambda x: F.pad(x, (3, 2), mode="reflect"))

functions(
    "indexing",
    IMAGE,
    index_select=lambda x: x.index_select(1, torch.tensor([2, 0, 0])),
    index_constant=lambda x: x[:, [3, 1, 1, 0]],
    index_pairs=lambda x: x[:, :, [0, 2, 5], [1, 1, -1]],
    window=lambda x: x[:, :, torch.arange(3)[:, None], torch.arange(4)],
    index_write_by_mask=lambda x: torch.index_put(x, (x > 1,), torch.tensor(0.0)),
)
functions(
    "indexing", IMAGE, whole(4, 3), index_dynamic=lambda x, i: x[:, i], take_first=lambda x, i: x.index_select(1, i)
)
functions(
    "indexing",
    ROWS,
    whole(5, 3, 2),
    gather=lambda x, i: x.gather(1, i),
    take_along=lambda x, i: torch.take_along_dim(x, i, 1),
)
functions("indexing", whole(7, 2, 5), one_hot=lambda i: F.one_hot(i, 7))
layers("indexing", whole(7, 2, 5), embedding=lambda: nn.Embedding(7, 4))
functions("indexing", ROWS, whole(5, 3, 2), native=False, scatter=lambda x, i: x.scatter(1, i, 1.0))
functions("indexing", ROWS, native=False, masked_scatter=lambda x: x.masked_scatter(x > 0, x))
