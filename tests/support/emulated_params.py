"""The parameters of csrc/params.h and the counts of tests/emulator, as ctypes structures."""

import ctypes


class RowLossParams(ctypes.Structure):
    _fields_ = [
        ("a", ctypes.c_void_p),
        ("b", ctypes.c_void_p),
        ("a_stride", ctypes.c_int64),
        ("b_stride", ctypes.c_int64),
        ("a_dtype", ctypes.c_int8),
        ("b_dtype", ctypes.c_int8),
        ("grad_dtype", ctypes.c_int8),
        ("loss", ctypes.c_void_p),
        ("grad", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("classes", ctypes.c_int64),
        ("temperature", ctypes.c_double),
        ("grad_weight", ctypes.c_double),
    ]


class ScaleGradParams(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("grad", "weight")),
        *(("dtype", ctypes.c_int8), ("size", ctypes.c_int64)),
    ]


class DirichletParams(ctypes.Structure):
    _fields_ = [
        ("concentration", ctypes.c_void_p),
        ("concentration_stride", ctypes.c_int64),
        ("dtype", ctypes.c_int8),
        ("ids", ctypes.c_void_p),
        ("ids_stride", ctypes.c_int64),
        ("seed", ctypes.c_int64),
        ("out", ctypes.c_void_p),
        ("log", ctypes.c_bool),
        ("rows", ctypes.c_int64),
        ("classes", ctypes.c_int64),
    ]


class PhiloxParams(ctypes.Structure):
    _fields_ = [
        ("ids", ctypes.c_void_p),
        ("ids_stride", ctypes.c_int64),
        ("seed", ctypes.c_int64),
        ("stream", ctypes.c_uint32),
        ("distribution", ctypes.c_int8),
        ("dtype", ctypes.c_int8),
        ("out", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("count", ctypes.c_int64),
    ]


class ImpressionUpdateParams(ctypes.Structure):
    _fields_ = [
        ("x", ctypes.c_void_p),
        ("grad", ctypes.c_void_p),
        ("exp_avg", ctypes.c_void_p),
        ("exp_avg_sq", ctypes.c_void_p),
        ("dtype", ctypes.c_int8),
        ("size", ctypes.c_int64),
        ("lo", ctypes.c_void_p),
        ("hi", ctypes.c_void_p),
        ("channels", ctypes.c_int64),
        ("channel_size", ctypes.c_int64),
        *((name, ctypes.c_double) for name in ("lr", "beta1", "beta2", "eps", "l1", "l2", "step")),
        ("device_lr", ctypes.c_void_p),
        ("device_step", ctypes.c_void_p),
        ("device_bounds", ctypes.c_bool),
    ]


class TotalVariationGradParams(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("grad", "x")),
        ("dtype", ctypes.c_int8),
        *((name, ctypes.c_int64) for name in ("planes", "height", "row_length", "pixel_stride")),
        ("weight", ctypes.c_double),
    ]


class DeadLeavesParams(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("numbers", "out")),
        *((name, ctypes.c_int64) for name in ("images", "leaves", "channels", "height", "width")),
    ]


class Augmentation(ctypes.Structure):
    _fields_ = [
        ("seed", ctypes.c_uint32 * 2),
        ("stream", ctypes.c_uint32),
        ("moves", ctypes.c_bool),
        *((name, ctypes.c_float) for name in ("rotation_sigma", "scale_sigma", "shift_sigma", "flip_probability")),
        *((name, ctypes.c_float) for name in ("mix_probability", "largest_deviation")),
        *((name, ctypes.c_float) for name in ("background", "lowest", "highest")),
    ]


class AugmentParams(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "positions")),
        ("positions_stride", ctypes.c_int64),
        ("out", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("rows", "channels", "height", "width")),
        ("numbers", Augmentation),
    ]


class Traffic(ctypes.Structure):
    """Accesses to global memory. A wide access has 128 bits."""

    _fields_ = [
        (name, ctypes.c_int64) for name in ("loads", "load_bytes", "stores", "store_bytes", "wide_loads", "wide_stores")
    ]


PARAMS = {
    "soft_cross_entropy": RowLossParams,
    "distillation_loss": RowLossParams,
    "scale_grad": ScaleGradParams,
    "dirichlet": DirichletParams,
    "philox": PhiloxParams,
    "impression_update": ImpressionUpdateParams,
    "total_variation_grad": TotalVariationGradParams,
    "dead_leaves": DeadLeavesParams,
    "augment": AugmentParams,
}
