#include "train/schedule.h"

#include <math.h>
#include <string.h>

static const char *const names[] = {"cosine", "linear", "constant", "wsd", "1-sqrt"};

kf_status kf_schedule_parse(const char *name, kf_schedule_kind *out, kf_error *e) {
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    if (strcmp(name, names[i]) != 0) continue;
    *out = (kf_schedule_kind)i;
    return KF_OK;
  }
  return kf_fail(e, KF_ERROR_USAGE, "unknown schedule '%.40s': cosine, linear, constant, wsd or 1-sqrt", name);
}

double kf_schedule_at(const kf_schedule *s, int64_t step) {
  if (step < s->warmup) return (double)(step + 1) / (double)s->warmup;
  int64_t rest = s->steps - s->warmup, decay = s->decay < rest ? s->decay : rest, start = s->steps - decay;
  double part = rest > 0 ? (double)(step - s->warmup) / (double)rest : 1,
         decayed = step > start && decay > 0 ? (double)(step - start) / (double)decay : 0;
  switch (s->kind) {
  case KF_SCHEDULE_COSINE: return (1 + cos(acos(-1) * part)) / 2;
  case KF_SCHEDULE_LINEAR: return 1 - part;
  case KF_SCHEDULE_WSD: return 1 - decayed;
  case KF_SCHEDULE_INVERSE_SQRT: return 1 - sqrt(decayed);
  default: return 1;
  }
}
