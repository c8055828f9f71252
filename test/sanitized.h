/*
 * Is this built with AddressSanitizer? Its allocator keeps what is freed, so that the
 * memory of a process says nothing. gcc and clang each say it in a way of their own.
 *
 * Copyright (c) 2026 the clutch authors
 * SPDX-License-Identifier: MIT
 */
#ifndef SANITIZED_H
#define SANITIZED_H

#include <stdbool.h>

#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED
#endif
#endif

#ifdef SANITIZED
#define MEMORY_COUNTS false
#else
#define MEMORY_COUNTS true
#endif

#endif
