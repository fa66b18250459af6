#if defined(__x86_64__)
#include "device/cpu/backward_f32.h"

const kf_backward_kernels kf_backward_avx512 = KF_BACKWARD_KERNELS;
#else
typedef int kf_not_x86; /* an empty file is not C */
#endif
