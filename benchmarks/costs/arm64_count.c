/* A plugin of QEMU: how many guest instructions have run, written to $HNAS_COUNT before each write(2) of the guest.
   QEMU's header is not installed with Debian's package, so the few declarations of its plugin interface stand here. */
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#define WRITE 64 /* of arm64 Linux */
#define PUBLIC __attribute__((visibility("default")))

struct qemu_plugin_tb;
typedef uint64_t id_t64;
typedef void (*on_translate)(id_t64, struct qemu_plugin_tb *);
typedef void (*on_run)(unsigned int, void *);
typedef void (*on_syscall)(id_t64, unsigned int, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                           uint64_t, uint64_t);
extern void qemu_plugin_register_vcpu_tb_trans_cb(id_t64, on_translate);
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, on_run, int, void *);
extern void qemu_plugin_register_vcpu_syscall_cb(id_t64, on_syscall);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);

PUBLIC int qemu_plugin_version = API;
static uint64_t total;
static FILE *out;

static void run(unsigned int cpu, void *instructions)
{
    (void)cpu;
    __atomic_fetch_add(&total, (uint64_t)(uintptr_t)instructions, __ATOMIC_RELAXED);
}

static void translate(id_t64 id, struct qemu_plugin_tb *block)
{
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_cb(block, run, 0, (void *)(uintptr_t)qemu_plugin_tb_n_insns(block));
}

static void tell(id_t64 id, unsigned int cpu, int64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d,
                 uint64_t e, uint64_t f, uint64_t g, uint64_t h)
{
    (void)id, (void)cpu, (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
    if (number != WRITE)
        return;
    rewind(out);
    fprintf(out, "%020" PRIu64 "\n", __atomic_load_n(&total, __ATOMIC_RELAXED));
    fflush(out);
}

PUBLIC int qemu_plugin_install(id_t64 id, const void *target, int argc, char **argv)
{
    const char *path = getenv("HNAS_COUNT");
    (void)target, (void)argc, (void)argv;
    out = path ? fopen(path, "w") : NULL;
    if (!out)
        return 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translate);
    qemu_plugin_register_vcpu_syscall_cb(id, tell);
    return 0;
}
