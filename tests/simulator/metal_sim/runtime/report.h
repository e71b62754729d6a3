// Findings of the launch that runs: each kind once per site and buffer, with a count.
#pragma once
#include <string.h>

#include "abi.h"
#include "fibers.h"

static Finding g_findings[kMaxFindings];
static LaunchReport g_report;
static u64 g_total_findings;

constexpr u64 kTooMany = 10000;  // repeated findings after which the launch stops

// Ends the launch from inside a fiber: nothing of it runs any more.
static void abort_launch() {
  g_report.aborted = 1;
  if (g_current) {
    g_current->state = kDone;
    leave_fiber();
  }
}

static Finding* report(u32 kind, int region, u64 site) {
  g_total_findings++;
  for (u32 i = 0; i < g_report.findings; i++) {
    Finding& old = g_findings[i];
    if (old.kind == kind && old.region == region && old.site == site) {
      old.count++;
      return nullptr;
    }
  }
  if (g_report.findings == kMaxFindings) return nullptr;
  Finding* finding = &g_findings[g_report.findings++];
  memset(finding, 0, sizeof *finding);
  finding->kind = kind;
  finding->region = region;
  finding->site = site;
  finding->count = 1;
  finding->thread = g_current ? g_current->id : ~0u;
  return finding;
}
