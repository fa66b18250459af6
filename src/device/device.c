/* Choosing a device, and what all devices share. */
#include "device/device.h"

#include <string.h>

#ifdef KF_CUDA
#include "device/cuda/cuda.h"
#else
static kf_status kf_device_open_cuda(kf_compute compute, int threads, kf_device **out, kf_error *e) {
  (void)compute, (void)threads, (void)out;
  return kf_fail(e, KF_ERROR_INPUT, "this kvfold was built without CUDA: it runs models on the CPU only");
}
#endif

kf_status kf_device_open(kf_device_kind kind, kf_compute compute, int threads, kf_device **out, kf_error *e) {
  return kind == KF_DEVICE_CUDA ? kf_device_open_cuda(compute, threads, out, e) : kf_device_open_cpu(compute, threads, out, e);
}

void kf_device_close(kf_device *d) {
  if (d) d->close(d);
}

kf_status kf_device_check(kf_device *d, kf_error *e) {
  d->wait(d);
  kf_status s = d->error.status;
  if (s != KF_OK && e) *e = d->error;
  d->error = (kf_error){0};
  return s;
}

kf_status kf_device_numbers(kf_device *d, const float *from, int64_t count, float **out, kf_error *e) {
  KF_DEVICE_NEW(d, *out, count, e);
  memcpy(*out, from, (size_t)count * sizeof *from);
  return KF_OK;
}
