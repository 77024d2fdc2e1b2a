# SPDX-License-Identifier: Apache-2.0
"""The commands of `cir-jax`, one module each: flags in, library calls out."""
