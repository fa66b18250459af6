#if defined(__x86_64__)
#include "device/cpu/kernels_f32.h"

const kf_vector_kernels kf_vector_avx2 = KF_VECTOR_KERNELS;
const kf_tile_kernels kf_tile_avx2 = KF_TILE_KERNELS;
#else
typedef int kf_not_x86; /* an empty file is not C */
#endif
