/* TransMLA (arXiv 2502.07864): merged heads, RoRoPE with FreqFold, balanced keys and values, joint PCA (joint_latent.h). */
#include "convert/joint_session.h"

enum { ROPE_DIM, FREQFOLD, BALANCE, VARIANT, STATISTICS };
enum { VARIANT_FIXED, VARIANT_CODE };

static const char *const automatic[] = {"auto", NULL};
static const char *const variants[] = {"fixed", "code", NULL};
static const char *const statistics[] = {"converted", "source", "partial", NULL}; /* as kf_joint_statistics */

const kf_key kf_transmla_keys[] = {
    [ROPE_DIM] = {"rope_dim", KF_TAKES_CHOICE | KF_TAKES_INTEGER, automatic, 2, 65536, "auto"},
    [FREQFOLD] = {"freqfold", KF_TAKES_CHOICE | KF_TAKES_INTEGER, automatic, 1, 65536, "auto"},
    [BALANCE] = {"balance", KF_TAKES_REAL, NULL, 0, 1e6, "1"},
    [VARIANT] = {"variant", KF_TAKES_CHOICE, variants, 0, 0, "fixed"},
    [STATISTICS] = {"statistics", KF_TAKES_CHOICE, statistics, 0, 0, NULL},
    {NULL, 0, NULL, 0, 0, NULL},
};

static kf_joint_statistics statistics_of(const kf_plan *p) {
  if (p->value[STATISTICS].given) return (kf_joint_statistics)p->value[STATISTICS].choice;
  return p->value[VARIANT].choice == VARIANT_CODE ? KF_JOINT_PARTIAL : KF_JOINT_CONVERTED;
}

kf_status kf_transmla_resolve(kf_plan *p, kf_error *e) {
  json_object_set_new(p->settings, "statistics", json_string(statistics[statistics_of(p)]));
  return kf_joint_resolve(p, ROPE_DIM, FREQFOLD, e);
}

kf_status kf_transmla_open(const kf_plan *p, const kf_corpus *corpus, void **session, kf_error *e) {
  const kf_joint_settings settings = {.rope_dim = (int)p->value[ROPE_DIM].integer,
                                      .freqfold = (int)p->value[FREQFOLD].integer,
                                      .balance = p->value[BALANCE].real,
                                      .code = p->value[VARIANT].choice == VARIANT_CODE};
  kf_joint_session *s;
  KF_TRY(kf_joint_open(p, corpus, &settings, statistics_of(p), &s, e));
  *session = s;
  return KF_OK;
}
