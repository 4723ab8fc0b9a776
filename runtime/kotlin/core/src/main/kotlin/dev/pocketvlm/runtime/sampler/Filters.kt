package dev.pocketvlm.runtime.sampler

// The steps between logits and probabilities. Scores of tokens that fall out become minus infinity, in place.

private const val OUT = Float.NEGATIVE_INFINITY

/** Indices of the tokens that have not fallen out. */
internal fun candidates(scores: FloatArray): IntArray = scores.indicesAtLeast(-Float.MAX_VALUE)

/** Divide positive and multiply negative scores of the tokens in [seen] by [penalty]. */
internal fun penalizeRepetition(scores: FloatArray, seen: Iterable<Int>, penalty: Float) {
    for (token in seen) {
        if (token !in scores.indices) continue
        val score = scores[token]
        scores[token] = if (score < 0) score * penalty else score / penalty
    }
}

/** Apply top-k, top-p and min-p. */
internal fun keepProbable(scores: FloatArray, options: SamplingOptions) {
    if (options.topK in 1 until scores.size) keepTopK(scores, options.topK)
    if (options.topP < 1) keepTopP(scores, options.topP)
    if (options.minP > 0) keepMinP(scores, options.minP)
}

/** Drop all but the [count] highest scores; scores equal to the last one kept stay too. */
internal fun keepTopK(scores: FloatArray, count: Int) {
    val smallest = kthHighest(scores, count)
    for (index in scores.indices) if (scores[index] < smallest) scores[index] = OUT
}

/** Drop the least likely tokens, with at most 1 - [share] of the probability together; one always stays. */
internal fun keepTopP(scores: FloatArray, share: Double) {
    val candidates = candidates(scores)
    val probabilities = softmax(FloatArray(candidates.size) { scores[candidates[it]] })
    val (likely, mass) = mostLikely(probabilities, share)
    val order = ascending(probabilities, likely)
    val others = (1 - mass).toFloat()
    val limit = (1 - share).toFloat()
    var cumulative = 0f
    var dropped = 0
    while (dropped < order.size - 1) {
        cumulative += probabilities[order[dropped]]
        if (cumulative + others > limit) break
        dropped++
    }
    val kept = FloatArray(order.size - dropped) { scores[candidates[order[dropped + it]]] }
    scores.fill(OUT)
    for (index in kept.indices) scores[candidates[order[dropped + index]]] = kept[index]
}

/** Drop tokens less likely than [share] times the most likely one. */
internal fun keepMinP(scores: FloatArray, share: Double) {
    val probabilities = softmax(scores)
    val least = share.toFloat() * probabilities.max()
    for (index in scores.indices) if (probabilities[index] < least) scores[index] = OUT
}

/**
 * Indices of the most likely tokens that have more than [share] together, perhaps some too many, in ascending order, and
 * their sum.
 *
 * A block of a few hundred nearly always suffices, and sorting it costs a hundredth of sorting a vocabulary.
 */
private fun mostLikely(probabilities: FloatArray, share: Double): Pair<IntArray, Double> {
    var count = 256
    while (count < probabilities.size) {
        val block = probabilities.indicesAtLeast(kthHighest(probabilities, count))
        val mass = pairwiseSum(FloatArray(block.size) { probabilities[block[it]] }).toDouble()
        if (mass > share) return block to mass
        count *= 8
    }
    return IntArray(probabilities.size) { it } to 1.0
}

/** [indices] from the least value to the highest, and from the least index to the highest where values are equal. */
private fun ascending(values: FloatArray, indices: IntArray): IntArray {
    // The bits of floats that are not negative are in the order of the floats.
    val keys = LongArray(indices.size) { (values[indices[it]].toRawBits().toLong() shl 32) or indices[it].toLong() }
    keys.sort()
    return IntArray(keys.size) { keys[it].toInt() }
}

/** The [k]-th highest value, counted from 1: Hoare's quickselect on a copy. */
internal fun kthHighest(values: FloatArray, k: Int): Float {
    val work = values.copyOf()
    val wanted = work.size - k
    var left = 0
    var right = work.size - 1
    while (left < right) {
        val pivot = work[(left + right) ushr 1]
        var low = left
        var high = right
        while (low <= high) {
            while (work[low] < pivot) low++
            while (work[high] > pivot) high--
            if (low <= high) {
                val swap = work[low]
                work[low++] = work[high]
                work[high--] = swap
            }
        }
        if (wanted <= high) {
            right = high
        } else if (wanted >= low) {
            left = low
        } else {
            break
        }
    }
    return work[wanted]
}

/** Indices of the values of at least [limit], in ascending order. */
internal fun FloatArray.indicesAtLeast(limit: Float): IntArray {
    val found = IntArray(count { it >= limit })
    var next = 0
    for (index in indices) if (this[index] >= limit) found[next++] = index
    return found
}
