#include "device/cpu/backward_f32.h"

const kf_backward_kernels kf_backward_portable = KF_BACKWARD_KERNELS;
