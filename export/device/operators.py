"""List the ATen operators that a graph from a file, or from another process, may name.

Each is a function of tensors and numbers, and reads and writes no file and no other device. A network
with another operator is converted in the process that captured it, and an artifact of it cannot be read.
"""

OPERATORS = frozenset(
    """
_adaptive_avg_pool2d _adaptive_avg_pool3d _assert_tensor_metadata _cdist_forward _conj _convolution _embedding_bag
_is_all_true _is_any_true _log_softmax _native_batch_norm_legit _native_batch_norm_legit_functional
_native_batch_norm_legit_no_training _native_multi_head_attention _pad_circular _pad_enum _pdist_forward
_prelu_kernel _reshape_alias _safe_softmax _scaled_dot_product_attention_math
_scaled_dot_product_flash_attention_for_cpu _shape_as_tensor _softmax _to_copy _transformer_encoder_layer_fwd
_trilinear _unique2 _unsafe_index _unsafe_view _upsample_bicubic2d_aa _upsample_bilinear2d_aa
_upsample_nearest_exact1d _upsample_nearest_exact2d _weight_norm abs absolute acos acosh adaptive_avg_pool1d
adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d add addbmm
addcdiv addcmul addmm addmv addr adjoint affine_grid_generator alias alias_copy all allclose alpha_dropout amax amin
aminmax angle any arange arccos arccosh arcsin arcsinh arctan arctan2 arctanh argmax argmin argsort argwhere
as_strided as_strided_copy as_strided_scatter as_tensor asin asinh atan atan2 atanh atleast_1d atleast_2d atleast_3d
avg_pool1d avg_pool2d avg_pool3d baddbmm bartlett_window batch_norm batch_norm_elemt batch_norm_gather_stats
batch_norm_gather_stats_with_counts batch_norm_stats batch_norm_update_stats bernoulli bilinear binary_cross_entropy
binary_cross_entropy_with_logits bincount bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift
bitwise_xor blackman_window block_diag bmm broadcast_tensors broadcast_to bucketize cartesian_prod cat cdist ceil
celu chain_matmul chalf channel_shuffle cholesky cholesky_inverse cholesky_solve chunk clamp clamp_max clamp_min
clip clone col2im column_stack combinations complex concat concatenate conj conj_physical constant_pad_nd contiguous
conv1d conv2d conv3d conv_depthwise3d conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d convolution copy
copysign corrcoef cos cosh cosine_embedding_loss cosine_similarity count count_nonzero cov cpu cross
cross_entropy_loss ctc_loss cummax cummin cumprod cumsum cumulative_trapezoid deg2rad det detach detach_copy diag
diag_embed diagflat diagonal diagonal_copy diagonal_scatter diff digamma dim dist div divide dot dropout dsplit
dstack einsum element_size elu embedding embedding_bag empty empty_like empty_permuted empty_strided eq equal erf
erfc erfinv exp exp2 expand expand_as expand_copy expm1 eye fake_quantize_per_channel_affine
fake_quantize_per_tensor_affine feature_dropout fft_fft fft_fft2 fft_fftn fft_fftshift fft_ifft fft_ifft2 fft_ifftn
fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftn fill fix flatten flatten_dense_tensors flip fliplr
flipud float_power floor floor_divide fmax fmin fmod frac fractional_max_pool2d fractional_max_pool3d frexp
frobenius_norm full full_like gather gcd ge gelu geqrf ger glu gradient greater grid_sampler grid_sampler_2d
grid_sampler_3d group_norm gru gru_cell gt hamming_window hann_window hardshrink hardsigmoid hardswish hardtanh
heaviside hinge_embedding_loss histc histogram histogramdd hsplit hstack huber_loss hypot i0 igamma igammac im2col
imag index index_add index_copy index_fill index_put index_reduce index_select inner instance_norm inverse
is_nonzero isclose isfinite isin isinf isnan isneginf isposinf isreal istft item kl_div kron kthvalue l1_loss
layer_norm lcm ldexp le leaky_relu lerp less lgamma lift lift_fresh lift_fresh_copy linalg__powsum linalg_cholesky
linalg_cond linalg_cross linalg_det linalg_diagonal linalg_eig linalg_eigh linalg_eigvals linalg_eigvalsh
linalg_householder_product linalg_inv linalg_inv_ex linalg_ldl_factor linalg_ldl_solve linalg_lstsq linalg_lu
linalg_lu_factor linalg_lu_solve linalg_matmul linalg_matrix_norm linalg_matrix_power linalg_matrix_rank
linalg_multi_dot linalg_norm linalg_pinv linalg_qr linalg_slogdet linalg_solve linalg_solve_triangular linalg_svd
linalg_svdvals linalg_tensorinv linalg_tensorsolve linalg_vander linalg_vecdot linalg_vector_norm linear linspace
log log10 log1p log2 log_sigmoid log_sigmoid_forward log_softmax logaddexp logaddexp2 logcumsumexp logdet
logical_and logical_not logical_or logical_xor logit logspace logsumexp lstm lstm_cell lt lu_solve lu_unpack mH mT
margin_ranking_loss masked_fill masked_scatter masked_select matmul matrix_H matrix_exp matrix_power max max_pool1d
max_pool2d max_pool3d max_unpool2d max_unpool3d maximum mean median meshgrid min minimum mish mm mode moveaxis
movedim mse_loss msort mul multi_margin_loss multilabel_margin_loss multilabel_margin_loss_forward multinomial
multiply mv mvlgamma nan_to_num nanmean nanmedian nanquantile nansum narrow native_batch_norm native_channel_shuffle
native_dropout native_group_norm native_layer_norm native_norm ne neg negative new_empty new_empty_strided new_full
new_ones new_zeros nextafter nll_loss nll_loss2d nll_loss2d_forward nll_loss_forward nll_loss_nd nonzero
nonzero_numpy nonzero_static norm normal normal_functional nuclear_norm numel numpy_T one_hot ones ones_like orgqr
ormqr outer pad pad_sequence pairwise_distance pdist permute permute_copy pinverse pixel_shuffle pixel_unshuffle
polar polygamma positive pow prelu prod put qr qscheme quantile quantize_per_tensor rad2deg rand rand_like randint
randint_like randn randn_like randperm range ravel real reciprocal reflection_pad1d reflection_pad2d
reflection_pad3d relu relu6 remainder renorm repeat repeat_interleave replication_pad1d replication_pad2d
replication_pad3d reshape reshape_as resolve_conj resolve_neg rms_norm rnn_relu rnn_relu_cell rnn_tanh rnn_tanh_cell
roll rot90 round row_stack rrelu rrelu_with_noise_functional rsqrt rsub scalar_tensor scaled_dot_product_attention
scatter scatter_add scatter_reduce searchsorted segment_reduce select select_copy select_scatter selu sgn sigmoid
sign signbit silu sin sinc sinh size slice slice_copy slice_inverse slice_scatter slogdet slow_conv3d
slow_conv3d_forward slow_conv_dilated2d slow_conv_dilated3d slow_conv_transpose2d slow_conv_transpose3d smm
smooth_l1_loss soft_margin_loss softmax softplus softshrink sort special_digamma special_entr special_erf
special_erfc special_erfinv special_exp2 special_expit special_expm1 special_gammaln special_i0 special_log1p
special_log_softmax special_logit special_logsumexp special_sinc special_softmax special_xlogy split split_copy
split_with_sizes split_with_sizes_copy sqrt square squeeze squeeze_copy stack std std_mean stft stride sub subtract
sum sum_to_size svd swapaxes swapdims sym_numel sym_size sym_stride t t_copy take take_along_dim tan tanh tensor
tensor_split tensordot thnn_conv2d threshold tile to to_dense topk trace transpose transpose_copy trapezoid trapz
triangular_solve tril triplet_margin_loss triu true_divide trunc type_as unbind unbind_copy unflatten
unflatten_dense_tensors unfold unfold_copy uniform unique_consecutive unique_dim unique_dim_consecutive unsafe_chunk
unsafe_split unsafe_split_with_sizes unsqueeze unsqueeze_copy upsample_bicubic2d upsample_bilinear2d
upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d vander var var_mean
vdot view view_as view_as_complex view_as_real view_copy vsplit vstack where xlogy zero zeros zeros_like
""".split()  # noqa: SIM905 - a list literal would have 660 lines
)
