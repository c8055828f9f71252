/*
 * Is this built with AddressSanitizer? Its allocator keeps freed memory, so the memory use of
 * a process means nothing. gcc and clang have different macros for this.
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
