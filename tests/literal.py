"""The steps of each method, one after another in plain loops, as its docstring and paper say them.

Nothing here is fast, and nothing is imported from vitcop. All functions look at one image, whose tokens are numbered
from 0, and return the numbers of those that stay, ascending; methods that merge also return groups: the token that
stands for each -> the tokens whose mean goes into it.
"""

import math


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def mean_vector(vectors):
    return [mean(column) for column in zip(*vectors, strict=True)]


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def softmax(values):
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def best(scores, count, among=None):
    """The `count` tokens of largest score, best first."""
    among = range(len(scores)) if among is None else among
    return sorted(among, key=lambda token: -scores[token])[:count]


def shared(budget, sizes):
    """A budget in proportion to `sizes`, in whole numbers: largest remainders first, earlier ones before later."""
    exact = [budget * size / sum(sizes) for size in sizes]
    shares = [math.floor(share + 1e-9) for share in exact]
    for part in sorted(range(len(sizes)), key=lambda part: (round(shares[part] - exact[part], 9), part)):
        if sum(shares) < budget:
            shares[part] += 1
    return shares


def attended(heads, query, tokens):
    """Attention of one query to each of `tokens`, mean over heads; `heads[h][query][key]`."""
    return [mean(head[query][token] for head in heads) for token in tokens]


def fastv(attention, budget):
    """Keep the top k by the last token's attention; which layer's is the caller's to say. PyramidDrop cuts so too."""
    return sorted(best(attention, budget))


def sparsevlm_raters(visual, text):
    """Text tokens that, in the mean over visual tokens of a softmax over text, have more than their mean.

    Where all have the same, as a single one has, each is a rater.
    """
    akin = mean_vector(softmax([sum(x * y for x, y in zip(v, t, strict=True)) for t in text]) for v in visual)
    return [number for number, value in enumerate(akin) if value > mean(akin)] or list(range(len(text)))


def sparsevlm_clusters(dropped):
    """How many of the dropped are recycled, and into how many tokens."""
    recycled = dropped * 3 // 10 + 1
    return recycled, recycled // 10 + 1


def sparsevlm(attention, raters, states, budget):
    """`attention[text][visual]`, mean over heads; `states` are what clusters are made of."""
    tokens = range(len(states))
    if budget == len(states):
        return list(tokens), {}
    score = mean_vector(attention[rater] for rater in raters)
    possible = [k for k in range(1, budget) if k + sparsevlm_clusters(len(states) - k)[1] == budget]
    top = max(possible, default=1)
    kept = best(score, top)
    if budget == 1:
        return kept, {}
    dropped = [token for token in tokens if token not in kept]
    recycled = best(score, sparsevlm_clusters(len(dropped))[0], dropped)
    groups = {}
    for cluster in density_peaks({token: states[token] for token in sorted(recycled)}, budget - top):
        groups[best(score, 1, cluster)[0]] = cluster
    return sorted([*kept, *groups]), {token: group for token, group in groups.items() if len(group) > 1}


def density_peaks(points, count):
    """Rodriguez and Laio: centres are dense and far from what is denser; all others follow their denser neighbour."""
    tokens = list(points)
    far = {(i, j): math.dist(points[i], points[j]) for i in tokens for j in tokens}
    others = len(tokens) - 1
    neighbours = min(others, max(1, round(0.02 * others)))
    reach = sorted(sorted(far[i, j] for j in tokens)[neighbours] for i in tokens)  # each token is nearest to itself
    cutoff = reach[others // 2] or 1.0
    density = {i: sum(math.exp(-((far[i, j] / cutoff) ** 2)) for j in tokens) for i in tokens}
    falling = sorted(tokens, key=lambda i: -density[i])
    parent = {
        token: min(falling[:rank], key=lambda other: far[token, other]) for rank, token in enumerate(falling) if rank
    }
    separation = {token: far[token, parent[token]] if token in parent else math.inf for token in tokens}
    centres = sorted(tokens, key=lambda i: -density[i] * separation[i])[:count]
    clusters = {centre: [centre] for centre in centres}
    of = {centre: centre for centre in centres}
    for token in falling:
        if token not in of:
            of[token] = of[parent[token]]
            clusters[of[token]].append(token)
    return [sorted(cluster) for cluster in clusters.values()]


def deft_counts(tokens, left):
    """What enters the decoder and what is left in the end."""
    return left + math.ceil(0.2 * (tokens - left)), left


def deft_entrance(saliency, budget):
    return sorted(best(saliency, budget))


def deft_middle(attention, budget):
    """`attention[text][visual]`, mean over heads."""
    return sorted(best(mean_vector(attention), budget))


def hawk(queries, keys, budget, weights=None):
    """`queries[text][head]`, `keys[visual][head]` without rotary embedding; a key head serves several query heads."""
    heads = len(queries[0])
    score = [0.0] * len(keys)
    for head in range(heads):
        served = head // (heads // len(keys[0]))
        attention = [
            mean(sum(x * y for x, y in zip(query[head], key[served], strict=True)) for query in queries)
            / math.sqrt(len(key[served]))
            for key in keys
        ]
        weight = 1 if weights is None else weights[head]
        score = [total + weight * value / math.hypot(*attention) for total, value in zip(score, attention, strict=True)]
    return sorted(best(score, budget))


def visionzip(saliency, keys, budget):
    """`keys[token][head]`. The groups do not hold their anchors, to which their mean is added."""
    tokens = range(len(saliency))
    contextual = round(budget * 10 / 64)
    dominant = best(saliency, budget - contextual)
    metric = [mean_vector(heads) for heads in keys]
    others = [token for token in tokens if token not in dominant]
    if not contextual or budget == len(saliency):
        return sorted(dominant) if budget < len(saliency) else list(tokens), {}
    anchors = others[:: len(others) // contextual][:contextual]
    groups = {}
    for token in others:
        if token not in anchors:
            anchor = max(anchors, key=lambda anchor: cosine(metric[token], metric[anchor]))
            groups.setdefault(anchor, []).append(token)
    return sorted([*dominant, *anchors]), groups


def divprune(features, budget):
    """Max-min distance, 1 - cosine."""
    tokens = range(len(features))

    def distance_to(token, chosen):
        return min((1 - cosine(features[token], features[other]) for other in chosen if other != token), default=0)

    chosen = [max(tokens, key=lambda token: distance_to(token, tokens))]
    while len(chosen) < budget:
        free = [token for token in tokens if token not in chosen]
        chosen.append(max(free, key=lambda token: distance_to(token, chosen)))
    return sorted(chosen)


def dart(keys, text_keys, states, text_states, budget):
    """`keys[token]` with all heads one after another; states after the final norm."""

    def largest(keys):
        return best([sum(abs(value) for value in key) for key in keys], 4)

    kept = largest(keys)[:budget]
    pivots = [states[token] for token in kept] + [text_states[token] for token in largest(text_keys)]
    each = math.ceil((budget - len(kept)) / len(pivots))
    for pivot in pivots:
        free = [token for token in range(len(states)) if token not in kept]
        free.sort(key=lambda token: cosine(states[token], pivot))
        kept += free[: min(each, budget - len(kept))]
    return sorted(kept)


def determinant(matrix):
    """By elimination; the matrix is positive semidefinite."""
    rows, value = [list(row) for row in matrix], 1.0
    for i, pivot in enumerate(rows):
        value *= pivot[i]
        if not value > 0:
            return 0.0
        for row in rows[i + 1 :]:
            factor = row[i] / pivot[i]
            row[i:] = [x - factor * y for x, y in zip(row[i:], pivot[i:], strict=True)]
    return value


def cdpruner(features, text, budget):
    """Each step takes the token with which the determinant of the kernel of those chosen is largest."""
    tokens = range(len(features))
    question = mean_vector(text)
    relevance = [cosine(feature, question) for feature in features]
    low, high = min(relevance), max(relevance)
    relevance = [(value - low) / (high - low) for value in relevance]
    kernel = [[relevance[i] * cosine(features[i], features[j]) * relevance[j] for j in tokens] for i in tokens]
    chosen = []
    while len(chosen) < budget:
        free = [token for token in tokens if token not in chosen]
        sets = {token: [*chosen, token] for token in free}
        chosen.append(
            max(free, key=lambda token: determinant([[kernel[i][j] for j in sets[token]] for i in sets[token]]))
        )
    return sorted(chosen)


def hiprune(middle, deep, places, budget):
    """`places[token]`: (row, column); `middle` and `deep`: attention received in the two layers."""
    anchors = best(middle, round(budget * 0.1 / 5))
    kept = set(anchors)
    for anchor in anchors:
        row, column = places[anchor]
        around = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
        kept |= {token for token, place in enumerate(places) if place in around}
    rest = [token for token in range(len(deep)) if token not in kept]
    return sorted([*kept, *best(deep, budget - len(kept), rest)])


def vispruner(saliency, features, budget):
    """Half by saliency, half by dropping duplicates, 8 at a time; of an odd budget saliency has the larger half."""
    important = best(saliency, math.ceil(budget / 2))
    others = [token for token in range(len(features)) if token not in important]
    while len(others) > budget - len(important):
        first, second = others[::2], others[1::2]
        alike = {a: max((cosine(features[a], features[b]) for b in second), default=-1) for a in first}
        gone = best(alike, min(8, len(others) - (budget - len(important))), first)
        others = [token for token in others if token not in gone]
    return sorted([*important, *others])


def vscan(shallow, deep, places, budget):
    """Half in windows of 6 x 6, half in the whole."""
    windows = {}
    for token, (row, column) in enumerate(places):
        windows.setdefault((row // 6, column // 6), []).append(token)
    windows = [windows[window] for window in sorted(windows)]
    kept = []
    for window, share in zip(windows, shared(budget // 2, [len(window) for window in windows]), strict=True):
        kept += best(shallow, share, window)
    kept += best(deep, budget - len(kept), [token for token in range(len(deep)) if token not in kept])
    return sorted(kept)


def averaged_into(kept, features):
    """Every dropped token joins the most similar one that stays."""
    groups = {token: [token] for token in kept}
    for token in range(len(features)):
        if token not in kept:
            groups[max(kept, key=lambda other: cosine(features[token], features[other]))].append(token)
    return {token: sorted(group) for token, group in groups.items() if len(group) > 1}


def mmtok(features, text, budget):
    """Facility location over softmax similarities."""
    tokens = range(len(features))

    def covers(target, temperature):
        return softmax([cosine(target, feature) / temperature for feature in features])

    of_text = [covers(word, 0.02) for word in text]
    of_picture = [covers(feature, 0.2) for feature in features]

    def covered(chosen):
        by_text, by_picture = (mean(max(row[t] for t in chosen) for row in rows) for rows in (of_text, of_picture))
        return by_text + 0.5 * by_picture

    chosen = []
    while len(chosen) < budget:
        chosen.append(max((t for t in tokens if t not in chosen), key=lambda token: covered([*chosen, token])))
    return sorted(chosen)


def scope(saliency, features, budget, alpha=1.0):
    """Each step takes the token of largest gain in coverage times saliency; what is unlike it is not covered."""
    tokens = range(len(features))
    alike = [[cosine(features[u], features[v]) for v in tokens] for u in tokens]
    covered, chosen = [0.0 for _ in tokens], []

    def gain(token):
        return sum(max(0.0, alike[u][token] - covered[u]) for u in tokens) * saliency[token] ** alpha

    while len(chosen) < budget:
        chosen.append(max((t for t in tokens if t not in chosen), key=gain))
        covered = [max(covered[u], alike[u][chosen[-1]]) for u in tokens]
    return sorted(chosen)


def census(saliency, features, budget, alpha=0.5):
    """SCOPE's choice, but what is covered is weighed, too; who is kept stands for those most like it, by `features`."""
    tokens = range(len(features))
    alike = [[cosine(features[u], features[v]) for v in tokens] for u in tokens]
    weight, covered, chosen = [value**alpha for value in saliency], [0.0 for _ in tokens], []

    def gain(token):
        return weight[token] * sum(weight[u] * max(0.0, alike[u][token] - covered[u]) for u in tokens)

    while len(chosen) < budget:
        chosen.append(max((t for t in tokens if t not in chosen), key=gain))
        covered = [max(covered[u], alike[u][chosen[-1]]) for u in tokens]
    kept = sorted(chosen)
    if budget == len(features) or not kept:
        return kept, {}
    groups = {token: [token] for token in kept}
    for token in set(tokens) - set(kept):
        groups[max(kept, key=lambda k: alike[token][k])].append(token)
    return kept, {token: sorted(group) for token, group in groups.items() if len(group) > 1}


def score(saliency, features, budget, alpha=0.8):
    """First the most salient token; then distance to the nearest one chosen, times saliency to the power alpha."""
    tokens = range(len(features))
    chosen, gap = best(saliency, 1), [math.inf for _ in tokens]
    while len(chosen) < budget:
        gap = [min(gap[t], 1 - cosine(features[t], features[chosen[-1]])) for t in tokens]
        free = [t for t in tokens if t not in chosen]
        chosen.append(max(free, key=lambda t: gap[t] * saliency[t] ** alpha))
    return sorted(chosen[:budget])


def knorm(keys, budget):
    """`keys[token][head]`."""
    norms = [math.hypot(*mean_vector(heads)) for heads in keys]
    return sorted(best([-norm for norm in norms], budget))


def average(budgets, num_layers):
    """Tokens of a schedule that are alive, over all layers."""
    layers, counts = [*budgets, num_layers], list(budgets.values())
    return sum((end - start) * n for start, end, n in zip(layers, layers[1:], counts, strict=False)) / num_layers
