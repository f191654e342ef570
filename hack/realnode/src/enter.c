/* Runs a program with a SIMULATED /proc/modules that names the driver; the rest of /proc are links to the real one. */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

static void fail(const char *what) { perror(what); _exit(111); }

int main(int count, char **arguments)
{
    char from[512], to[512];
    if (count < 2) return 112;
    mkdir("/run/real-proc", 0755);
    mkdir("/run/proc", 0755);
    if (mount("/proc", "/run/real-proc", NULL, MS_BIND | MS_REC, NULL)) fail("bind /proc");
    if (mount("tmpfs", "/run/proc", "tmpfs", 0, "mode=755")) fail("tmpfs");
    DIR *proc = opendir("/proc");
    for (struct dirent *entry; proc && (entry = readdir(proc));) {
        if (isdigit(entry->d_name[0]) || entry->d_name[0] == '.' || !strcmp(entry->d_name, "modules")) continue;
        snprintf(from, sizeof from, "/run/real-proc/%s", entry->d_name);
        snprintf(to, sizeof to, "/run/proc/%s", entry->d_name);
        if (symlink(from, to)) fail(to);
    }
    FILE *modules = fopen("/run/proc/modules", "w");
    if (!modules) fail("/run/proc/modules");
    fputs("nvidia 1000000 0 - Live 0x0000000000000000 (SIMULATED)\n", modules);
    fclose(modules);
    if (mount("/run/proc", "/proc", NULL, MS_BIND, NULL)) fail("bind over /proc");
    execv(arguments[1], arguments + 1);
    fail(arguments[1]);
}
