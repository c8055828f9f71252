/*
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#include <criterion/criterion.h>
