// What the 32 lanes of a warp work out together.
#pragma once

#include "score.cuh"

#define MW_WARP 0xFFFFFFFFu  // all lanes

// sum l x of one pair, by a whole warp.
MW_FN i32 second_limb(const i8* low_d, const i8* x_d, int width, int lane) {
    const i32* low4 = reinterpret_cast<const i32*>(low_d);
    const i32* x4 = reinterpret_cast<const i32*>(x_d);
    i32 sum = 0;
    for (int i = lane; i < width / 4; i += 32) sum = dot4(low4[i], x4[i], sum);
    return __reduce_add_sync(MW_WARP, sum);
}
