#include "device/cpu/kernels_f32.h"

const kf_vector_kernels kf_vector_portable = KF_VECTOR_KERNELS;
const kf_tile_kernels kf_tile_portable = KF_TILE_KERNELS;
