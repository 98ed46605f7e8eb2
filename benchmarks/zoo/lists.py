"""List the architectures: family, name, size of the input in pixels, and options that make the network small."""

from __future__ import annotations

from typing import Any

Row = tuple[str, str, int, dict[str, Any]]

_VIT: dict[str, Any] = {"depth": 3}

TIMM: tuple[Row, ...] = (
    ("ResNet", "resnet18", 64, {}),
    ("ResNet v2", "resnetv2_50d_gn", 64, {"layers": (1, 1, 1, 1)}),
    ("ResNeXt", "resnext26ts", 64, {}),
    ("Res2Net", "res2net50_14w_8s", 64, {}),
    ("ResNeSt", "resnest14d", 64, {}),
    ("SKNet", "skresnet18", 64, {}),
    ("ECA, GC", "eca_resnext26ts", 64, {}),
    ("RegNet", "regnetx_002", 64, {}),
    ("MobileNet", "mobilenetv3_small_050", 64, {}),
    ("EfficientNet", "efficientnet_lite0", 64, {}),
    ("EfficientNet", "mixnet_s", 64, {}),
    ("LCNet", "lcnet_050", 64, {}),
    ("FBNet", "fbnetc_100", 64, {}),
    ("GhostNet", "ghostnet_050", 64, {}),
    ("RepVGG", "repvgg_a0", 64, {}),
    ("MobileOne", "mobileone_s0", 64, {}),
    ("RepViT", "repvit_m0_9", 64, {}),
    ("DLA", "dla46_c", 64, {}),
    ("DPN", "dpn48b", 64, {}),
    ("CSPNet", "cspresnet50", 64, {}),
    ("VoVNet", "ese_vovnet19b_slim_dw", 64, {}),
    ("HRNet", "hrnet_w18_small", 64, {}),
    ("SelecSLS", "selecsls42b", 64, {}),
    ("ReXNet", "rexnet_100", 64, {}),
    ("HardCoRe-NAS", "hardcorenas_a", 64, {}),
    ("NFNet", "nf_regnet_b0", 64, {}),
    ("ConvNeXt", "convnext_atto", 64, {"depths": (1, 1, 2, 1)}),
    ("InceptionNeXt", "inception_next_atto", 64, {"depths": (1, 1, 2, 1)}),
    ("HGNet", "hgnetv2_b0", 64, {}),
    ("StarNet", "starnet_s050", 64, {}),
    ("FasterNet", "fasternet_t0", 64, {}),
    ("SHViT", "shvit_s1", 64, {}),
    ("ViT", "vit_tiny_patch16_224", 64, {"img_size": 64, **_VIT}),
    ("EVA", "eva02_tiny_patch14_224", 56, {"img_size": 56, **_VIT}),
    ("BEiT", "beit_base_patch16_224", 64, {"img_size": 64, "embed_dim": 192, "num_heads": 3, **_VIT}),
    ("CaiT", "cait_xxs24_224", 64, {"img_size": 64, **_VIT}),
    ("XCiT", "xcit_nano_12_p16_224", 64, {"img_size": 64, **_VIT}),
    ("Swin", "swin_tiny_patch4_window7_224", 56, {"img_size": 56, "depths": (2, 2, 2, 2), "embed_dim": 48}),
    ("Swin", "swinv2_tiny_window8_256", 64, {"img_size": 64, "depths": (2, 2, 2, 2), "embed_dim": 48}),
    ("PVT", "pvt_v2_b0", 64, {}),
    ("Twins", "twins_svt_small", 64, {"img_size": 64, "depths": (2, 2, 2, 2)}),
    ("PiT", "pit_ti_224", 224, {}),
    ("CoaT", "coat_lite_tiny", 64, {"img_size": 64}),
    ("CoAtNet, MaxViT", "coatnet_pico_rw_224", 64, {"img_size": 64}),
    ("MobileViT", "mobilevit_xxs", 64, {}),
    ("EdgeNeXt", "edgenext_xx_small", 64, {}),
    ("EfficientFormer", "efficientformerv2_s0", 224, {"depths": (1, 1, 2, 2)}),
    ("EfficientViT", "efficientvit_b0", 64, {}),
    ("EfficientViT", "efficientvit_m0", 64, {"img_size": 64}),
    ("FastViT", "fastvit_t8", 64, {}),
    ("SwiftFormer", "swiftformer_xs", 64, {}),
    ("PoolFormer", "poolformer_s12", 64, {}),
    ("MLP", "mixer_s16_224", 64, {"img_size": 64}),
    ("MLP", "gmlp_ti16_224", 64, {"img_size": 64}),
    ("GCViT", "gcvit_xxtiny", 64, {"img_size": 64, "window_ratio": (32, 32, 16, 32)}),
    ("DaViT", "davit_tiny", 64, {"depths": (1, 1, 1, 1), "embed_dims": (48, 96, 192, 384)}),
    ("Hiera", "hiera_tiny_224", 64, {"img_size": 64, "stages": (1, 1, 2, 1)}),
    ("MambaOut", "mambaout_femto", 64, {"depths": (1, 1, 2, 1)}),
)

TORCHVISION: tuple[Row, ...] = (
    ("AlexNet, VGG", "alexnet", 64, {}),
    ("SqueezeNet", "squeezenet1_1", 64, {}),
    ("ShuffleNet", "shufflenet_v2_x0_5", 64, {}),
    ("Inception", "googlenet", 64, {"aux_logits": False, "init_weights": False}),
    ("MobileNet", "mobilenet_v2", 64, {}),
    ("DenseNet", "densenet121", 32, {}),
    ("DeepLab, LR-ASPP", "lraspp_mobilenet_v3_large", 64, {"weights_backbone": None}),
)

_SMALL: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
}
_CAUSAL: dict[str, Any] = {**_SMALL, "use_cache": False, "num_key_value_heads": 2}

# family, class, class of the configuration, options
TEXT: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("BERT", "BertForSequenceClassification", "BertConfig", _SMALL),
    ("BERT", "RobertaModel", "RobertaConfig", {**_SMALL, "pad_token_id": 1}),
    ("BERT", "ElectraForTokenClassification", "ElectraConfig", {**_SMALL, "embedding_size": 16}),
    ("BERT", "AlbertModel", "AlbertConfig", {**_SMALL, "embedding_size": 16}),
    ("BERT", "MobileBertModel", "MobileBertConfig", {**_SMALL, "intra_bottleneck_size": 32, "embedding_size": 16}),
    (
        "BERT",
        "DistilBertForQuestionAnswering",
        "DistilBertConfig",
        {"vocab_size": 100, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 32},
    ),
    ("MPNet", "MPNetModel", "MPNetConfig", _SMALL),
    ("DeBERTa", "DebertaV2Model", "DebertaV2Config", {**_SMALL, "relative_attention": True, "pos_att_type": "p2c|c2p"}),
    ("FNet", "FNetModel", "FNetConfig", _SMALL),
    (
        "GPT",
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 100, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4, "use_cache": False},
    ),
    (
        "GPT",
        "OPTModel",
        "OPTConfig",
        {**_SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32, "use_cache": False},
    ),
    ("LLaMA", "LlamaForCausalLM", "LlamaConfig", _CAUSAL),
    ("LLaMA", "MistralModel", "MistralConfig", _CAUSAL),
    ("LLaMA", "Qwen2Model", "Qwen2Config", _CAUSAL),
    ("LLaMA", "PhiModel", "PhiConfig", _CAUSAL),
    (
        "T5",
        "T5EncoderModel",
        "T5Config",
        {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "use_cache": False},
    ),
    ("CLIP", "CLIPTextModel", "CLIPTextConfig", {**_SMALL, "eos_token_id": 99}),
)
UNMASKED = ("FNetModel",)

_EYES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 64,
    "patch_size": 16,
}

# family, class, class of the configuration, name and shape of the input, options
SIGNALS: tuple[tuple[str, str, str, str, tuple[int, ...], dict[str, Any]], ...] = (
    ("ViT", "ViTForImageClassification", "ViTConfig", "pixel_values", (3, 64, 64), _EYES),
    ("CLIP", "CLIPVisionModel", "CLIPVisionConfig", "pixel_values", (3, 64, 64), _EYES),
    ("ViT", "Dinov2Model", "Dinov2Config", "pixel_values", (3, 64, 64), _EYES),
    (
        "SegFormer",
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        "pixel_values",
        (3, 64, 64),
        {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64], "num_attention_heads": [1, 2, 3, 4]},
    ),
    (
        "Speech",
        "Wav2Vec2Model",
        "Wav2Vec2Config",
        "input_values",
        (1600,),
        {**_SMALL, "conv_dim": (32, 32, 32), "conv_stride": (5, 2, 2), "conv_kernel": (10, 3, 3)},
    ),
)
