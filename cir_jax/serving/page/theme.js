// SPDX-License-Identifier: Apache-2.0
// A light or dark choice of an earlier visit, before anything is painted. No module: those run late.
"use strict";
try {
  const theme = localStorage.getItem("cir_jax.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage is closed to this page: the system's choice stands.
}
