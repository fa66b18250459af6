/* How kernels are written and launched: one struct is their argument. Kernels are C that nvcc compiles as CUDA;
 * tests/simulated/ has another version of this file, which runs them on the CPU. */
#ifndef KF_CUDA_LAUNCH_H
#define KF_CUDA_LAUNCH_H

#include <cuda_runtime.h>

#define KF_KERNEL(name, type, argument) static __global__ void name(const __grid_constant__ type argument)
#define KF_LAUNCH(name, blocks, threads, stream, job) name<<<(blocks), (threads), 0, (stream)>>>(job)

#endif
