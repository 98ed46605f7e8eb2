"""Products, attention, norms, convolutions, pooling, resizing, and recurrent layers."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.export.backends.operators.table import (
    IMAGE,
    LINE,
    TOKENS,
    VOLUME,
    WIDE,
    First,
    ToItself,
    functions,
    layers,
    normal,
    small,
    truth,
)

_HEADS = normal(1, 2, 5, 8), normal(1, 2, 5, 8), normal(1, 2, 5, 8)
functions(
    "products",
    normal(2, 3, 5),
    normal(2, 5, 4),
    matmul=torch.matmul,
    bmm=torch.bmm,
    einsum=lambda a, b: torch.einsum("bij,bjk->bik", a, b),
)
functions(
    "products",
    normal(3, 5),
    normal(5, 4),
    mm=torch.mm,
    matrix_of_products=lambda a, b: torch.addmm(b.sum(0), a, b, alpha=0.5),
)
functions("products", normal(2, 3, 5), normal(5), matmul_vector=torch.matmul, inner=torch.inner)
functions("products", normal(4), normal(5), outer=torch.outer, einsum_outer=lambda a, b: torch.einsum("i,j->ij", a, b))
functions("products", normal(5), normal(5), dot=torch.dot)
functions(
    "products",
    normal(2, 4, 3, 5),
    normal(5, 6),
    matmul_ranks=torch.matmul,
    tensordot=lambda a, b: torch.tensordot(a, b, 1),
)
functions(
    "products",
    normal(2, 3, 4),
    normal(2, 3, 5),
    normal(2, 5, 4),
    baddbmm=lambda c, a, b: torch.baddbmm(c, a, b, beta=0.5),
)
functions(
    "products", normal(2, 4, 6, 8), normal(2, 4, 5, 8), einsum_heads=lambda q, k: torch.einsum("bhqd,bhkd->bhqk", q, k)
)
functions("products", normal(6, 16), normal(8, 16), normal(8), linear_computed=F.linear)
layers("products", TOKENS, linear=lambda: nn.Linear(16, 8), linear_no_bias=lambda: nn.Linear(16, 8, bias=False))
layers("products", normal(3, 4), normal(3, 5), bilinear=lambda: nn.Bilinear(4, 5, 3))

functions(
    "attention",
    *_HEADS,
    attention=F.scaled_dot_product_attention,
    attention_causal=lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    attention_mask=lambda q, k, v: F.scaled_dot_product_attention(q, k, v, torch.ones(5, 5).tril().bool()),
    attention_by_hand=lambda q, k, v: (
        (q @ k.transpose(-2, -1)).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf).softmax(-1) @ v
    ),
)
functions(
    "attention",
    *_HEADS,
    truth(1, 1, 5, 5),
    attention_dynamic_mask=F.scaled_dot_product_attention,
)
functions(
    "attention",
    normal(1, 4, 5, 8),
    *_HEADS[1:],
    attention_grouped=lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
)
layers(
    "attention",
    TOKENS,
    multihead=lambda: First(ToItself(nn.MultiheadAttention(16, 2, batch_first=True))),
    encoder_layer=lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
)


layers(
    "norms",
    WIDE,
    batch_norm=lambda: nn.BatchNorm2d(8),
    group_norm=lambda: nn.GroupNorm(4, 8),
    instance_norm=lambda: nn.InstanceNorm2d(8),
    instance_norm_affine=lambda: nn.InstanceNorm2d(8, affine=True),
    layer_norm_axes=lambda: nn.LayerNorm((8, 6, 8)),
    local_response_norm=lambda: nn.LocalResponseNorm(3),
    weight_norm=lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 4, 3)),
    batch_norm_after_relu=lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(8), nn.ReLU()),
)
layers(
    "norms",
    TOKENS,
    layer_norm=lambda: nn.LayerNorm(16),
    rms_norm=lambda: nn.RMSNorm(16),
    group_norm_1d=lambda: nn.GroupNorm(3, 6),
)
layers("norms", LINE, batch_norm_1d=lambda: nn.BatchNorm1d(4), instance_norm_1d=lambda: nn.InstanceNorm1d(4))

layers(
    "convolutions",
    WIDE,
    conv=lambda: nn.Conv2d(8, 6, 3, padding=1),
    conv_stride=lambda: nn.Conv2d(8, 6, 3, stride=2, padding=1),
    conv_dilated=lambda: nn.Conv2d(8, 6, 3, dilation=2, padding=2),
    conv_grouped=lambda: nn.Conv2d(8, 6, 3, groups=2),
    conv_depthwise=lambda: nn.Conv2d(8, 8, 5, padding=2, groups=8),
    conv_same=lambda: nn.Conv2d(8, 6, 4, padding="same"),
    conv_reflect=lambda: nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"),
    conv_circular=lambda: nn.Conv2d(8, 6, 3, padding=1, padding_mode="circular"),
    conv_transposed=lambda: nn.ConvTranspose2d(8, 6, 2, stride=2),
    conv_transposed_padded=lambda: nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1),
    conv_transposed_output_padding=lambda: nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1),
    conv_transposed_more=lambda: nn.ConvTranspose2d(8, 6, 3, stride=3, output_padding=(2, 1)),
    conv_transposed_stride_one=lambda: nn.ConvTranspose2d(8, 6, 3, padding=1),
    conv_transposed_dilated=lambda: nn.ConvTranspose2d(8, 6, 3, stride=2, dilation=2, padding=2),
    conv_transposed_groups=lambda: nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1, output_padding=1, groups=4),
    conv_transposed_depthwise=lambda: nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1, groups=8),
)
layers(
    "convolutions",
    LINE,
    conv_1d=lambda: nn.Conv1d(4, 6, 3, padding=1),
    conv_1d_causal=lambda: nn.Sequential(nn.ConstantPad1d((4, 0), 0.0), nn.Conv1d(4, 6, 3, dilation=2)),
    conv_1d_depthwise=lambda: nn.Conv1d(4, 4, 3, stride=2, groups=4),
    conv_transposed_1d=lambda: nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1),
)
layers(
    "convolutions",
    VOLUME,
    conv_3d=lambda: nn.Conv3d(3, 4, 3, padding=1),
    conv_3d_stride=lambda: nn.Conv3d(3, 4, 2, stride=2),
)
functions("convolutions", IMAGE, normal(6, 4, 3, 3), native=False, conv_computed=F.conv2d)

layers(
    "pooling",
    IMAGE,
    max_pool=lambda: nn.MaxPool2d(3, 2, 1),
    max_pool_ceil=lambda: nn.MaxPool2d(3, 2, ceil_mode=True),
    max_pool_ceil_padded=lambda: nn.MaxPool2d(2, 2, 1, ceil_mode=True),
    max_pool_dilated=lambda: nn.MaxPool2d(3, 2, 1, dilation=2),
    avg_pool=lambda: nn.AvgPool2d(3, 2),
    avg_pool_padded=lambda: nn.AvgPool2d(3, 2, 1),
    avg_pool_without_border=lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    avg_pool_ceil=lambda: nn.AvgPool2d(2, 2, ceil_mode=True),
    avg_pool_ceil_padded=lambda: nn.AvgPool2d((3, 4), 3, 1, ceil_mode=True),
    avg_pool_divisor=lambda: nn.AvgPool2d(3, 2, divisor_override=5),
    lp_pool=lambda: nn.LPPool2d(2, 3),
    adaptive_avg=lambda: nn.AdaptiveAvgPool2d((3, 5)),
    adaptive_avg_one=lambda: nn.AdaptiveAvgPool2d(1),
    adaptive_avg_uneven=lambda: nn.AdaptiveAvgPool2d((4, 3)),
    adaptive_max=lambda: nn.AdaptiveMaxPool2d((3, 5)),
    adaptive_max_uneven=lambda: nn.AdaptiveMaxPool2d((4, 3)),
)
layers(
    "pooling",
    LINE,
    max_pool_1d=lambda: nn.MaxPool1d(3, 2, 1),
    avg_pool_1d=lambda: nn.AvgPool1d(3, 2),
    adaptive_avg_1d=lambda: nn.AdaptiveAvgPool1d(4),
    adaptive_avg_1d_uneven=lambda: nn.AdaptiveAvgPool1d(5),
    adaptive_max_1d=lambda: nn.AdaptiveMaxPool1d(4),
)
layers(
    "pooling",
    VOLUME,
    max_pool_3d=lambda: nn.MaxPool3d(2),
    avg_pool_3d=lambda: nn.AvgPool3d(2),
    adaptive_avg_3d=lambda: nn.AdaptiveAvgPool3d(2),
)

functions(
    "resizing",
    IMAGE,
    nearest=lambda x: F.interpolate(x, scale_factor=2),
    nearest_three=lambda x: F.interpolate(x, scale_factor=(3, 1)),
    nearest_size=lambda x: F.interpolate(x, (13, 7)),
    nearest_exact=lambda x: F.interpolate(x, (13, 7), mode="nearest-exact"),
    bilinear_resize=lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    bilinear_corners=lambda x: F.interpolate(x, (15, 7), mode="bilinear", align_corners=True),
    bilinear_scale=lambda x: F.interpolate(x, scale_factor=1.3, mode="bilinear"),
    bilinear_smooth=lambda x: F.interpolate(x, (4, 5), mode="bilinear", antialias=True),
    bicubic=lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    area=lambda x: F.interpolate(x, (4, 3), mode="area"),
)
functions(
    "resizing",
    LINE,
    linear_resize=lambda x: F.interpolate(x, 20, mode="linear"),
    nearest_1d=lambda x: F.interpolate(x, scale_factor=2),
)
functions("resizing", IMAGE, small(1, 5, 6, 2), grid_sample=lambda x, g: F.grid_sample(x, g, align_corners=False))

layers(
    "recurrent",
    normal(2, 4, 6),
    gru=lambda: First(nn.GRU(6, 8, batch_first=True)),
    lstm=lambda: First(nn.LSTM(6, 8, batch_first=True)),
    rnn=lambda: First(nn.RNN(6, 8, batch_first=True)),
    lstm_two_ways=lambda: First(nn.LSTM(6, 8, batch_first=True, bidirectional=True, num_layers=2)),
)
layers("recurrent", normal(2, 6), normal(2, 8), gru_cell=lambda: nn.GRUCell(6, 8), rnn_cell=lambda: nn.RNNCell(6, 8))
layers("recurrent", normal(2, 6), lstm_cell=lambda: First(nn.LSTMCell(6, 8)))
