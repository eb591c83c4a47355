"""One small model for each architecture of the families, and what vitq must find in it."""
from dataclasses import dataclass, field

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 2}
NARROW = {"mlp_ratio": 2}
ROPE = TINY | {"embed_dim": 64}  # a rotary head is a multiple of 4 wide
SWIN = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
SLIM = {"layers": (1, 1, 1, 1), "channels": (16, 16, 32, 32), "stem_width": 8}


@dataclass(frozen=True)
class Variant:
    """timm's model, its arguments, and what vitq finds: blocks (an attention pool is one), and sites, the counts that are
    right: two where the q of an attention pool is constant (a fixed batch), or where dynamo merges equal weights; none where
    no count is agreed yet, so that only equality among the exports is asked for."""

    model: str
    arguments: dict = field(default_factory=dict)
    blocks: int = 2
    sites: tuple = ()
    size: int = 32


def v(model, arguments, **more):
    return Variant(model, arguments, **more)


VARIANTS = {
    # vision_transformer
    "vit": v("vit_tiny_patch16_224", TINY | NARROW, sites=(48,)),
    "vit_gap": v("vit_base_patch16_gap_224", TINY | NARROW, sites=(49,)),
    "vit_reg_gap": v("vit_wee_patch16_reg1_gap_256", TINY | NARROW, sites=(49,)),
    "vit_no_qkv_bias": v("vit_base_patch16_224_miil", TINY | NARROW, sites=(48,)),
    "vit_qk_norm": v("vit_tiny_patch16_224", TINY | NARROW | {"qk_norm": True}, sites=(52,)),
    "vit_no_norm": v("vit_so400m_patch16_radio_v4", TINY | NARROW, sites=(48,)),
    "vit_parallel_things": v("vit_small_patch16_18x2_224", TINY | NARROW, sites=(88,)),
    "vit_parallel_scaling": v("vit_pwee_patch16_reg1_gap_256", TINY | NARROW, sites=(47,)),
    "vit_xp": v("vit_base_patch16_xp_224", TINY | NARROW, sites=(51,)),
    "vit_diff": v("vit_dwee_patch16_reg1_gap_256", TINY | NARROW),
    "vit_diff_parallel": v("vit_dpwee_patch16_reg1_gap_256", TINY | NARROW),
    "vit_res_post_norm": v("vit_base_patch16_rpn_224", TINY | NARROW, sites=(49,)),
    "aimv2": v("aimv2_large_patch14_224", TINY | NARROW, sites=(58,)),
    "beit3": v("beit3_base_patch16_224", TINY | NARROW, sites=(53,)),
    "dinov2_reg": v("vit_small_patch14_reg4_dinov2", TINY | NARROW, sites=(48,)),
    "dinov2_swiglu": v("vit_giant_patch14_reg4_dinov2", TINY | {"mlp_ratio": 4}, sites=(56,)),
    "clip": v("vit_base_patch16_clip_224", TINY | NARROW, sites=(49,)),
    "clip_quickgelu": v("vit_base_patch16_clip_quickgelu_224", TINY | NARROW, sites=(49,)),
    "siglip": v("vit_base_patch16_siglip_224", TINY | NARROW, blocks=3, sites=(68, 66)),
    "siglip_gap": v("vit_base_patch16_siglip_gap_224", TINY | NARROW, sites=(49,)),
    "map_prefix": v("test_vit3", TINY | NARROW, blocks=3, sites=(68, 66)),
    # deit
    "deit": v("deit_tiny_patch16_224", TINY | NARROW, sites=(48,)),
    "deit_distilled": v("deit_tiny_distilled_patch16_224", TINY | NARROW, sites=(51,)),
    "deit3": v("deit3_small_patch16_224", TINY | NARROW, sites=(48,)),
    # beit
    "beit": v("beit_base_patch16_224", TINY | NARROW, sites=(47,)),
    # eva
    "eva": v("eva_giant_patch14_224", TINY | NARROW, sites=(49,)),
    "eva02": v("eva02_tiny_patch14_224", ROPE | NARROW, sites=(61,)),
    "eva02_norms": v("eva02_base_patch14_224", ROPE | NARROW, sites=(63,)),
    "eva02_clip": v("eva02_base_patch16_clip_224", ROPE | NARROW, sites=(64,)),
    "eva02_post_norm": v("eva02_enormous_patch14_clip_224", ROPE | NARROW, sites=(48,)),
    "dinov3": v("vit_small_patch16_dinov3", ROPE | NARROW, sites=(51,)),
    "dinov3_plus": v("vit_small_plus_patch16_dinov3_qkvb", ROPE | NARROW, sites=(59,)),
    "sapiens2": v("vit_base_patch16_sapiens2", ROPE | NARROW | {"num_kv_heads": (2, 2)}, sites=(62,)),
    "sapiens2_grouped": v("vit_base_patch16_sapiens2", ROPE | NARROW | {"num_heads": 4, "num_kv_heads": (4, 2)}),
    "pe_core": v(
        "vit_pe_core_tiny_patch16_384", ROPE | NARROW | {"attn_pool_num_heads": 2, "attn_pool_mlp_ratio": 2},
        blocks=3, sites=(73, 71),
    ),  # fmt: skip
    "pe_spatial": v("vit_pe_spatial_tiny_patch16_512", ROPE | NARROW, sites=(53,)),
    "rope": v("vit_small_patch16_rope_224", ROPE | NARROW, sites=(50,)),
    "rope_mixed_ape": v("vit_small_patch16_rope_mixed_ape_224", ROPE | NARROW, sites=(52,)),
    "rope_reg_gap": v("vit_medium_patch16_rope_reg1_gap_256", ROPE | NARROW, sites=(51,)),
    # swin_transformer, swin_transformer_v2
    "swin": v("swin_tiny_patch4_window7_224", SWIN | NARROW, blocks=4, sites=(93,)),
    "swin_padded": v("swin_tiny_patch4_window7_224", SWIN | NARROW | {"window_size": 3}, blocks=4, sites=(93,)),
    "swinv2": v("swinv2_tiny_window8_256", SWIN | NARROW, blocks=4, sites=(105,)),
    # cait
    "cait": v("cait_xxs24_224", TINY | NARROW, blocks=4, sites=(100,)),
    # resnet: no block, every convolution and Linear by the general rules
    "resnet": v("resnet18", SLIM, blocks=0, size=64, sites=(34,)),
    "resnet_deep_stem": v("resnet26d", SLIM, blocks=0, size=64, sites=(49,)),
    "seresnet": v("seresnet50", SLIM, blocks=0, size=64, sites=(68,)),
    "ecaresnet": v("ecaresnet26t", SLIM, blocks=0, size=64, sites=(69,)),
    "resnet_blur": v("resnetblur18", SLIM, blocks=0, size=64, sites=(46, 45)),
    "resnet_gn": v("resnet50_gn", SLIM | {"channels": (32, 32, 32, 32), "stem_width": 32}, blocks=0, size=64, sites=(50,)),
}
